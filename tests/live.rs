//! Properties that change while frames flow, and the similarity filter.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::*;

/// Settings that are not those of the storm.
const CALM: &[Setting] = &[
    ("prompt", "a calm sea"),
    ("negative-prompt", "ink"),
    ("t-index-list", "32,45"),
    ("guidance-scale", "1.3"),
    ("delta", "0.8"),
    ("cfg-type", "full"),
    ("seed", "7"),
    ("add-noise", "true"),
    ("similarity-filter", "false"),
    ("mode", "img2img"),
    ("noise", "fixed"),
    ("scheduler", "auto"),
    ("mix", "0.75"),
];

/// What is set at the i-th change of the storm.
fn storm(i: u64) -> Vec<(&'static str, String)> {
    let pick = |values: &[&str]| values[i as usize % values.len()].to_string();
    let mut changes = vec![("prompt", format!("cat {i}"))];
    changes.push(match i % 14 {
        0 => ("steps", (1 + i % 4).to_string()),
        1 => ("strength", (i % 10) as f64 / 10.0).into_text(),
        2 => ("guidance-scale", 1.0 + (i % 7) as f64 / 5.0).into_text(),
        3 => ("cfg-type", pick(&["none", "full", "self", "initialize"])),
        4 => ("seed", i.to_string()),
        5 => ("t-index-list", pick(&["35", "", "0,16,32,45", "32,45"])),
        6 => ("similarity-filter", i.is_multiple_of(2).to_string()),
        7 => ("delta", (i % 5) as f64 / 4.0).into_text(),
        8 => ("mode", pick(&["txt2img", "img2img"])),
        9 => ("noise", pick(&["walk", "fixed", "fresh"])),
        10 => ("scheduler", pick(&["tcd", "auto", "lcm"])),
        11 => ("eta", (i % 5) as f64 / 4.0).into_text(),
        12 => ("mix", (i % 5) as f64 / 4.0).into_text(),
        _ => ("add-noise", i.is_multiple_of(2).to_string()),
    });
    changes
}

trait IntoText {
    fn into_text(self) -> (&'static str, String);
}

impl IntoText for (&'static str, f64) {
    fn into_text(self) -> (&'static str, String) {
        (self.0, self.1.to_string())
    }
}

#[test]
fn a_storm_of_changes_loses_no_frame_and_settles() {
    const CHANGES: u64 = 1000;
    let rig = Rig::playing(&[], &rgb());
    let (pushed, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..CHANGES {
                for (name, value) in storm(i) {
                    set(&rig.element, &[(name, &value)]);
                }
                if i % 10 == 9 {
                    let seen = pushed.load(Ordering::SeqCst);
                    wait_until("frames flow", || pushed.load(Ordering::SeqCst) > seen);
                }
            }
            over.store(true, Ordering::SeqCst);
        });
        while !over.load(Ordering::SeqCst) {
            rig.push(frame(pushed.load(Ordering::SeqCst)));
            pushed.fetch_add(1, Ordering::SeqCst);
        }
    });
    let stormy = pushed.load(Ordering::SeqCst);
    assert!(stormy >= CHANGES / 10);

    // The same picture again and again, until it comes out as with these settings from the start.
    set(&rig.element, CALM);
    let expected = restyled(CALM, 0..1).remove(0);
    let mut count = stormy;
    let mut out = rig.frames();
    let mut push = || {
        rig.push(buffer(picture(0), count));
        count += 1;
        let new = rig.frames();
        let caps = rig.output_caps();
        let settled = new
            .iter()
            .all(|buffer| difference(&pixels(buffer, &caps), &expected) <= 1);
        out.extend(new);
        settled
    };
    let mut in_a_row = 0;
    for _ in 0..500 {
        in_a_row = if push() { in_a_row + 1 } else { 0 };
        if in_a_row == 5 {
            break;
        }
    }
    assert_eq!(in_a_row, 5, "it did not settle");
    rig.end();
    out.extend(rig.frames());
    assert_eq!(out.len() as u64, count);
    for (k, buffer) in (0..).zip(&out) {
        assert_eq!(buffer.pts(), Some(time(k)));
    }
    let errors = rig.errors();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn a_prompt_changes_the_picture() {
    let with = |prompt| [("prompt", prompt), ("cfg-type", "none")];
    let cat = restyled(&with("a neon cat"), 0..1).remove(0);
    let sea = restyled(&with("a calm sea"), 0..1).remove(0);
    assert!(difference(&cat, &sea) > 4);
    let rig = Rig::playing(&join(&with("a neon cat"), &[("t-index-list", "")]), &rgb());
    let shown = |k, expected: &[u8]| {
        rig.push(buffer(picture(0), k));
        let found = rig.pictures();
        found.last().is_some_and(|f| difference(f, expected) <= 1)
    };
    assert!((0..5).any(|k| shown(k, &cat)));
    set(&rig.element, &with("a calm sea"));
    assert!((5..500).any(|k| shown(k, &sea)));
    set(&rig.element, &with("a neon cat"));
    assert!((500..999).any(|k| shown(k, &cat)));
}

#[test]
fn each_frame_goes_through_the_steps_it_entered_with() {
    const LISTS: [&str; 5] = ["35", "0,16,32,45", "32,45", "35", "22,32,45"];
    const EACH: u64 = 4;
    let frames = LISTS.len() as u64 * EACH;
    let rig = Rig::playing(&[], &rgb());
    for (i, list) in (0..).zip(LISTS) {
        set(&rig.element, &[("t-index-list", list)]);
        rig.push_frames(i * EACH..(i + 1) * EACH);
    }
    rig.end();
    let caps = rig.output_caps();
    let out = rig.frames();
    assert_eq!(out.len() as u64, frames);
    for (i, list) in LISTS.iter().enumerate() {
        let entered = i as u64 * EACH..(i as u64 + 1) * EACH;
        let expected = restyled(&[("t-index-list", list)], entered.clone());
        for (k, expected) in entered.zip(&expected) {
            let found = &out[k as usize];
            assert_eq!(found.pts(), Some(time(k)));
            same(
                &pixels(found, &caps),
                expected,
                &format!("frame {k}, {list}"),
            );
        }
    }
    assert!(rig.errors().is_empty());
}

#[test]
fn every_live_setting_takes_effect_as_if_set_from_the_start() {
    let base: &[Setting] = &[
        ("prompt", "a neon cat"),
        ("negative-prompt", "ink"),
        ("cfg-type", "self"),
        ("guidance-scale", "1.4"),
    ];
    let before = restyled(base, 0..1).remove(0);
    for change in [
        ("steps", "4"),
        ("strength", "0.9"),
        ("t-index-list", "10,20"),
        ("num-inference-steps", "25"),
        ("guidance-scale", "3"),
        ("delta", "0.2"),
        ("cfg-type", "none"),
        ("seed", "99"),
        ("add-noise", "false"),
        ("mix", "0.5"),
    ] {
        let rig = Rig::playing(base, &rgb());
        rig.push_frames(0..1);
        set(&rig.element, &[change]);
        // What is in flight takes the new guidance, so it is left out.
        rig.push_frames(0..1);
        rig.end();
        let found = rig.pictures();
        assert_eq!(found.len(), 2);
        let after = restyled(&join(base, &[change]), 0..1).remove(0);
        assert_ne!(before, after, "{change:?} does nothing");
        same(&found[1], &after, &format!("{change:?}"));
    }
}

#[test]
fn a_still_clip_is_processed_now_and_then() {
    const FRAMES: u64 = 23;
    for (list, skips, processed) in [("35", 10, 3), ("32,45", 10, 3), ("35", 3, 6), ("35", 0, 23)] {
        let most = skips.to_string();
        let settings = [
            ("t-index-list", list),
            ("similarity-filter", "true"),
            ("ssf-threshold", "0.98"),
            ("ssf-max-skip", &most),
        ];
        let expected = restyled(&[("t-index-list", list)], 0..1).remove(0);
        let rig = Rig::playing(&settings, &rgb());
        for k in 0..FRAMES {
            rig.push(buffer(picture(0), k));
        }
        rig.end();
        let caps = rig.output_caps();
        let out = rig.frames();
        assert_eq!(out.len() as u64, FRAMES, "{settings:?}");
        assert_eq!(stat(&rig.element, "processed"), processed, "{settings:?}");
        assert_eq!(stat(&rig.element, "skipped"), FRAMES - processed);
        assert_eq!(stat(&rig.element, "output"), FRAMES);
        let memory = |buffer: &gst::Buffer| buffer.peek_memory(0).as_ptr();
        for (k, found) in (0..).zip(&out) {
            assert_eq!(found.pts(), Some(time(k)));
            assert_eq!(found.duration(), Some(time(1)));
            same(&pixels(found, &caps), &expected, "a still picture");
            let first = k / (skips + 1) * (skips + 1);
            let shared = memory(found) == memory(&out[first as usize]);
            assert!(shared, "frame {k} does not share the memory of {first}");
            if first == k && k > 0 {
                assert_ne!(memory(found), memory(&out[k as usize - 1]), "frame {k}");
            }
        }
    }
}

#[test]
fn frames_that_differ_are_not_skipped() {
    let settings = [
        ("similarity-filter", "true"),
        ("ssf-threshold", "1"),
        ("t-index-list", "35"),
    ];
    let expected = restyled(&[("t-index-list", "35")], 0..8);
    let rig = Rig::playing(&settings, &rgb());
    rig.push_frames(0..8);
    rig.end();
    assert_eq!(stat(&rig.element, "skipped"), 0);
    let found = rig.pictures();
    assert_eq!(found.len(), 8);
    for (found, expected) in found.iter().zip(&expected) {
        same(found, expected, "not skipped");
    }
}

#[test]
fn a_controller_drives_properties_by_stream_time() {
    use gst::prelude::*;
    use gst_controller::prelude::*;
    let element = make(&[]);
    let source = gst_controller::InterpolationControlSource::new();
    source.set_mode(gst_controller::InterpolationMode::None);
    let binding = gst_controller::DirectControlBinding::new(&element, "strength", &source);
    element.add_control_binding(&binding).unwrap();
    assert!(source.set(time(0), 0.3));
    assert!(source.set(time(3), 0.9));
    let rig = Rig::with(element, Neighbours::default());
    rig.play(&rgb());
    rig.push_frames(0..6);
    rig.end();
    let found = rig.pictures();
    assert_eq!(found.len(), 6);
    let weak = restyled(&[("strength", "0.3")], 0..3);
    let strong = restyled(&[("strength", "0.9")], 3..6);
    for (k, (found, expected)) in found.iter().zip(weak.iter().chain(&strong)).enumerate() {
        same(found, expected, &format!("frame {k}"));
    }
    let other = restyled(&[("strength", "0.3")], 3..4);
    assert!(
        difference(&other[0], &strong[0]) > 1,
        "strength does nothing"
    );
}

/// Values for a controller to go between, where a property's own range goes beyond what the model can do.
fn bounds(spec: &gst::glib::ParamSpec) -> (f64, f64) {
    match spec.name() {
        "num-inference-steps" => return (20.0, 50.0),
        "guidance-scale" => return (1.0, 3.0),
        _ => {}
    }
    if let Some(spec) = spec.downcast_ref::<gst::glib::ParamSpecUInt64>() {
        return (spec.minimum() as f64, spec.minimum() as f64 + 7e9);
    }
    if let Some(spec) = spec.downcast_ref::<gst::glib::ParamSpecUInt>() {
        let most = spec.maximum().min(spec.minimum().saturating_add(7));
        return (spec.minimum().into(), most.into());
    }
    let spec = spec.downcast_ref::<gst::glib::ParamSpecDouble>();
    let spec = spec.expect("a number of another kind");
    (spec.minimum(), spec.maximum().min(spec.minimum() + 2.0))
}

/// A property's value as a number.
fn number(element: &gst::Element, name: &str) -> f64 {
    use gst::prelude::*;
    let value = element.property_value(name);
    match (value.get::<u32>(), value.get::<u64>()) {
        (Ok(number), _) => number.into(),
        (_, Ok(number)) => number as f64,
        _ => value.get().unwrap(),
    }
}

/// Each frame is made with what a line from one value to another has at its time, all properties at once and each by
/// itself.
#[test]
fn every_controllable_number_follows_an_interpolation() {
    use gst::prelude::*;
    use gst_controller::prelude::*;
    const FRAMES: u64 = 8;
    let line = |element: &gst::Element, spec: &gst::glib::ParamSpec| {
        let source = gst_controller::InterpolationControlSource::new();
        source.set_mode(gst_controller::InterpolationMode::Linear);
        let binding =
            gst_controller::DirectControlBinding::new_absolute(element, spec.name(), &source);
        element.add_control_binding(&binding).unwrap();
        let (from, to) = bounds(spec);
        assert!(source.set(time(0), from) && source.set(time(FRAMES - 1), to));
    };
    let expected = |spec: &gst::glib::ParamSpec, k: u64| {
        let (from, to) = bounds(spec);
        from + (to - from) * k as f64 / (FRAMES - 1) as f64
    };
    let specs: Vec<_> = make(&[])
        .list_properties()
        .iter()
        .filter(|spec| spec.flags().contains(gst::PARAM_FLAG_CONTROLLABLE))
        .filter(|spec| spec.value_type() != bool::static_type())
        .cloned()
        .collect();
    let named = |name: &str| specs.iter().any(|spec| spec.name() == name);
    for name in [
        "steps",
        "strength",
        "guidance-scale",
        "delta",
        "eta",
        "ssf-threshold",
        "mix",
    ] {
        assert!(named(name), "{name} is not controllable");
    }
    keep_model();
    for each in specs.iter().map(std::slice::from_ref).chain([&specs[..]]) {
        let element = make(&[]);
        each.iter().for_each(|spec| line(&element, spec));
        let rig = Rig::with(element, Neighbours::default());
        rig.play(&rgb());
        for k in 0..FRAMES {
            rig.push_frames(k..k + 1);
            for spec in each {
                let (found, expected) = (number(&rig.element, spec.name()), expected(spec, k));
                // Whole numbers are cut or rounded.
                let near = match spec.value_type() == u32::static_type() {
                    true => 1.0,
                    false => 1e-6,
                };
                let what = format!("{}, frame {k}: {found}, not {expected}", spec.name());
                assert!((found - expected).abs() < near, "{what}");
            }
        }
        rig.end();
        assert_eq!(rig.frames().len() as u64, FRAMES);
        let errors = rig.errors();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

/// A picture fades in: with each frame the share that is set for its time.
#[test]
fn a_controller_fades_the_restyled_picture_in() {
    use gst::prelude::*;
    use gst_controller::prelude::*;
    let steps = [("t-index-list", "32,45")];
    let element = make(&steps);
    let source = gst_controller::InterpolationControlSource::new();
    source.set_mode(gst_controller::InterpolationMode::Linear);
    let binding = gst_controller::DirectControlBinding::new(&element, "mix", &source);
    element.add_control_binding(&binding).unwrap();
    assert!(source.set(time(0), 0.0) && source.set(time(4), 1.0));
    let rig = Rig::with(element, Neighbours::default());
    rig.play(&rgb());
    rig.push_frames(0..5);
    rig.end();
    let found = rig.pictures();
    assert_eq!(found.len(), 5);
    for (k, (found, wet)) in (0..).zip(found.iter().zip(restyled(&steps, 0..5))) {
        let share = k as f64 / 4.0;
        let pairs = wet.iter().zip(picture(k));
        let expected: Vec<u8> = pairs
            .map(|(wet, dry)| {
                (share * f64::from(*wet) + (1.0 - share) * f64::from(dry)).round() as u8
            })
            .collect();
        same(found, &expected, &format!("frame {k}"));
    }
}
