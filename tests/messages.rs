//! What the element posts on the bus, its statistics and its action signals.

mod common;

use common::*;
use gst::prelude::*;

/// The element's messages that are told of here, so far.
fn told(rig: &Rig) -> Vec<gst::Message> {
    use gst::MessageType::{Element, Error, Progress, Warning};
    rig.messages(&[Element, Error, Progress, Warning])
}

/// What a message is, in a word or two.
fn name(message: &gst::Message) -> String {
    match message.view() {
        gst::MessageView::Progress(progress) => {
            let (kind, code, _) = progress.get();
            assert_eq!(code, "loading");
            format!("{kind:?}")
        }
        gst::MessageView::Element(_) => message.structure().unwrap().name().to_string(),
        gst::MessageView::Error(_) => "error message".into(),
        _ => format!("{message:?}"),
    }
}

fn names(messages: &[gst::Message]) -> Vec<String> {
    messages.iter().map(name).collect()
}

/// The element messages of this name (without what they all begin with).
fn of(messages: &[gst::Message], which: &str) -> Vec<gst::Structure> {
    let which = format!("streamdiffusion-{which}");
    let structures = messages.iter().filter_map(|m| m.structure());
    structures
        .filter(|structure| structure.name() == which.as_str())
        .map(ToOwned::to_owned)
        .collect()
}

fn progress_text(message: &gst::Message) -> String {
    match message.view() {
        gst::MessageView::Progress(progress) => progress.text().to_string(),
        _ => panic!("{message:?}"),
    }
}

/// Waits for a message of progress of this kind; gives all messages up to it.
#[track_caller]
fn until(rig: &Rig, kind: gst::ProgressType) -> Vec<gst::Message> {
    use gst::MessageType::{Element, Error, Progress, Warning};
    let mut messages = Vec::new();
    loop {
        let types = [Element, Error, Progress, Warning];
        let message = rig.bus.timed_pop_filtered(PATIENCE, &types);
        let message = message.unwrap_or_else(|| panic!("no {kind:?} after {messages:?}"));
        let found = name(&message) == format!("{kind:?}");
        messages.push(message);
        if found {
            return messages;
        }
    }
}

#[test]
fn loading_is_told_from_start_to_end() {
    let folder = Folder::model();
    let path = folder.path().to_str().unwrap();
    let rig = Rig::new(&[("model", path)], Neighbours::default());
    rig.play(&rgb());
    rig.push_frames(0..1);
    let messages = told(&rig);
    let loaded = "streamdiffusion-model-loaded";
    let applied = "streamdiffusion-prompt-applied";
    let expected = [
        "Start", "Continue", "Continue", "Continue", "Continue", "Complete",
    ];
    assert_eq!(
        names(&messages),
        [&expected[..], &[loaded, applied]].concat()
    );
    let components = ["text_encoder", "unet", "vae_encoder", "vae_decoder"];
    for (message, component) in messages[1..].iter().zip(components) {
        assert_eq!(progress_text(message), format!("loading {component}"));
    }
    assert!(progress_text(&messages[0]).contains(path));

    let loaded = of(&messages, "model-loaded").remove(0);
    let text = |field| loaded.get::<String>(field).unwrap();
    let model = folder.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(text("model"), model);
    assert!(text("backend").starts_with("onnxruntime "));
    assert_eq!(
        (&text("device")[..], &text("reason")[..]),
        ("CPU", "asked for")
    );
    let took = loaded.get::<u64>("load-time-ns").unwrap();
    assert!(took > 0);
    assert_eq!(stat(&rig.element, "load-time-ns"), took);

    // What another element has loaded takes no components.
    let second = Rig::new(&[("model", path)], Neighbours::default());
    second.play(&rgb());
    second.push_frames(0..1);
    let messages = told(&second);
    assert_eq!(names(&messages)[..2], ["Start", "Complete"]);
}

#[test]
fn a_failure_ends_the_progress_after_its_error() {
    let folder = unloadable();
    let path = folder.path().to_str().unwrap();
    let rig = Rig::new(&[("model", path)], Neighbours::default());
    rig.element.set_state(gst::State::Paused).unwrap();
    let messages = until(&rig, gst::ProgressType::Error);
    let names = names(&messages);
    assert_eq!(names[0], "Start");
    assert_eq!(names[names.len() - 2..], ["error message", "Error"]);
    assert!(progress_text(messages.last().unwrap()).contains(path));
    rig.element.set_state(gst::State::Null).unwrap();
    assert!(told(&rig).is_empty());
}

#[test]
fn what_is_no_model_has_no_progress() {
    let folder = Folder::model();
    std::fs::write(folder.file("vae_decoder/model.onnx"), "no graph").unwrap();
    // An error that quotes what no C string can hold.
    let odd = Folder::model();
    std::fs::write(odd.file("streamdiffusion.toml"), "\"a\\u0000b\" = 1").unwrap();
    let paths = [&folder, &odd].map(|folder| folder.path().to_str().unwrap());
    for path in [paths[0], paths[1], "/no/such/folder"] {
        let rig = Rig::new(&[("model", path)], Neighbours::default());
        assert!(rig.element.set_state(gst::State::Paused).is_err());
        assert_eq!(names(&told(&rig)), ["error message"], "{path}");
        rig.element.set_state(gst::State::Null).unwrap();
        assert!(told(&rig).is_empty());
    }
}

/// A model folder whose image decoder nothing can run, which is not seen before it is loaded.
fn unloadable() -> Folder {
    let folder = Folder::model();
    let file = folder.file("vae_decoder/model.onnx");
    let mut graph = std::fs::read(&file).unwrap();
    let mut renamed = 0;
    for at in 0..graph.len() - 4 {
        if &graph[at..at + 4] == b"Conv" {
            graph[at..at + 4].copy_from_slice(b"Vonc");
            renamed += 1;
        }
    }
    assert!(renamed > 0);
    std::fs::write(file, graph).unwrap();
    folder
}

/// The frame that the message names is the first that shows the new prompt and nothing of the old one.
#[test]
fn a_prompt_is_told_of_with_the_first_frame_that_shows_it() {
    let with = |prompt| {
        [
            ("prompt", prompt),
            ("cfg-type", "none"),
            ("negative-prompt", "ink"),
        ]
    };
    for (list, size) in [("35", "1"), ("32,45", "1"), ("32,45", "2")] {
        let steps = [("t-index-list", list), ("frame-buffer-size", size)];
        let before = restyled(&join(&with("a neon cat"), &steps), 0..1).remove(0);
        let after = restyled(&join(&with("a calm sea"), &steps), 0..1).remove(0);
        let rig = Rig::playing(&join(&with("a neon cat"), &steps), &rgb());
        let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
        segment.set_start(time(1));
        segment.set_base(time(100));
        assert!(rig.event(gst::event::Segment::new(&segment)));
        let (mut count, mut messages) = (1, Vec::new());
        let mut push = |messages: &mut Vec<_>| {
            rig.push(buffer(picture(0), count));
            count += 1;
            messages.extend(of(&told(&rig), "prompt-applied"));
        };
        for _ in 0..size.parse().unwrap() {
            assert!(messages.is_empty());
            push(&mut messages);
        }
        assert_eq!(messages.len(), 1);
        set(&rig.element, &with("a calm sea"));
        for _ in 0..10_000 {
            push(&mut messages);
            if messages.len() == 2 {
                break;
            }
        }
        for _ in 0..4 {
            push(&mut messages);
        }
        rig.end();
        assert_eq!(messages.len(), 2, "{messages:?}");
        let time_of =
            |structure: &gst::Structure, field| structure.get::<gst::ClockTime>(field).unwrap();
        assert_eq!(time_of(&messages[0], "pts"), time(1));
        for (message, prompt) in messages.iter().zip(["a neon cat", "a calm sea"]) {
            assert_eq!(message.get::<&str>("prompt").unwrap(), prompt);
            assert_eq!(message.get::<&str>("negative-prompt").unwrap(), "ink");
            let running_time = time_of(message, "pts") - time(1) + time(100);
            assert_eq!(time_of(message, "running-time"), running_time);
        }
        let first = time_of(&messages[1], "pts");
        let caps = rig.output_caps();
        let out = rig.frames();
        assert_eq!(out.len() as u64, count - 1);
        let held_back = list.split(',').count() as u64 * size.parse::<u64>().unwrap() - 1;
        for found in &out {
            let (pts, found) = (found.pts().unwrap(), pixels(found, &caps));
            if pts >= first {
                same(&found, &after, "the new prompt");
            } else if pts + time(held_back) < first {
                same(&found, &before, "the old prompt");
            } else {
                assert!(difference(&found, &after) > 1, "{pts} shows it already");
            }
        }
        let stats = rig.element.property::<gst::Structure>("stats");
        assert_eq!(stats.get::<&str>("prompt").unwrap(), "a calm sea");
        assert_eq!(stats.get::<&str>("negative-prompt").unwrap(), "ink");
    }
}

/// Who changes a prompt and takes that back changes nothing, and is told of nothing.
#[test]
fn a_prompt_in_force_is_not_told_of_again() {
    const CAT: &str = "a neon cat";
    const SEA: &str = "a calm sea";
    let rig = Rig::playing(&[("t-index-list", "35"), ("prompt", CAT)], &rgb());
    let (mut k, mut messages) = (0, Vec::new());
    let mut push_until = |done: &dyn Fn(&[gst::Message]) -> bool| {
        for _ in 0..10_000 {
            rig.push(buffer(picture(0), k));
            k += 1;
            messages.extend(told(&rig));
            if done(&messages) {
                return;
            }
        }
        panic!("{messages:?}");
    };
    let warned = |messages: &[gst::Message]| {
        messages
            .iter()
            .any(|m| m.type_() == gst::MessageType::Warning)
    };
    push_until(&|messages| of(messages, "prompt-applied").len() == 1);
    set(&rig.element, &[("prompt", "(cat:11)")]);
    push_until(&warned);
    set(&rig.element, &[("prompt", CAT)]);
    let frames = std::cell::Cell::new(0);
    push_until(&|_| frames.replace(frames.get() + 1) == 50);
    set(&rig.element, &[("prompt", SEA)]);
    let last = |messages: &[gst::Message]| {
        let applied = of(messages, "prompt-applied");
        applied.last().unwrap().get::<&str>("prompt") == Ok(SEA)
    };
    push_until(&last);
    assert_eq!(of(&messages, "prompt-applied").len(), 2, "{messages:?}");
}

/// Where prompts turn into one another over a time, the beginning is told, and the end, with the first frame that shows the new
/// one alone; what is given up on the way has no end.
#[test]
fn a_transition_is_told_at_its_beginning_and_its_end() {
    const CAT: &str = "a neon cat";
    const SEA: &str = "a calm sea";
    let length = time(4).nseconds().to_string();
    for (list, size) in [("35", "1"), ("32,45", "2")] {
        let settings = [
            ("t-index-list", list),
            ("frame-buffer-size", size),
            ("prompt", CAT),
            ("negative-prompt", "ink"),
            ("prompt-transition", &length),
        ];
        let rig = Rig::playing(&settings, &rgb());
        let src = gst::Pad::builder(gst::PadDirection::Src).build();
        let sink = rig.element.request_pad_simple("prompt").unwrap();
        src.link(&sink).unwrap();
        src.set_active(true).unwrap();
        assert!(src.push_event(gst::event::StreamStart::new("show")));
        let segment = gst::FormattedSegment::<gst::ClockTime>::new();
        assert!(src.push_event(gst::event::Segment::new(&segment)));
        for (k, prompt) in [(2, SEA), (8, CAT), (10, SEA)] {
            src.push(buffer(prompt.as_bytes().to_vec(), k)).unwrap();
        }
        assert!(src.push_event(gst::event::Eos::new()));
        rig.push_frames(0..16);
        rig.end();
        let found: Vec<_> = told(&rig)
            .iter()
            .filter(|message| name(message).starts_with("streamdiffusion-prompt"))
            .map(|message| {
                let structure = message.structure().unwrap();
                let pts: gst::ClockTime = structure.get("pts").unwrap();
                assert_eq!(structure.get::<gst::ClockTime>("running-time"), Ok(pts));
                assert_eq!(structure.get::<&str>("negative-prompt"), Ok("ink"));
                let duration = structure.get::<u64>("duration").ok();
                let begins = name(message) == "streamdiffusion-prompt-transition";
                assert_eq!(duration, begins.then_some(time(4).nseconds()));
                let prompt: String = structure.get("prompt").unwrap();
                (begins, prompt, pts.mseconds() / FRAME_MS)
            })
            .collect();
        let expected = [
            (false, CAT, 0),
            (true, SEA, 2),
            (false, SEA, 6),
            (true, CAT, 8),
            (true, SEA, 10),
            (false, SEA, 14),
        ];
        let expected = expected.map(|(begins, prompt, k)| (begins, prompt.to_owned(), k));
        assert_eq!(found, expected, "{list}, groups of {size}");
    }
}

#[test]
fn the_filter_tells_when_it_begins_and_ends_not_of_every_frame() {
    let rig = Rig::playing(
        &[
            ("t-index-list", "32,45"),
            ("similarity-filter", "true"),
            ("ssf-threshold", "0.98"),
            ("ssf-max-skip", "3"),
        ],
        &rgb(),
    );
    let mut count = 0;
    let mut messages = Vec::new();
    let mut push = |picture: Vec<u8>| {
        rig.push(buffer(picture, count));
        count += 1;
    };
    // Moves, stands still, moves.
    let moving = |k: u64| picture(4 * k);
    for k in 0..8 {
        push(moving(k));
    }
    assert!(of(&told(&rig), "skipping").is_empty());
    (0..40).for_each(|_| push(moving(7)));
    messages.extend(told(&rig));
    let skipped = stat(&rig.element, "skipped");
    assert!(skipped >= 30);
    for k in 0..8 {
        push(moving(k));
    }
    messages.extend(told(&rig));
    let names: Vec<_> = messages.iter().map(name).collect();
    assert_eq!(
        names,
        ["streamdiffusion-skipping", "streamdiffusion-resumed"]
    );
    let skipping = messages[0].structure().unwrap();
    assert_eq!(skipping.get::<u64>("skipped").unwrap(), 1);
    assert!(skipping.get::<f64>("similarity").unwrap() > 0.9999);
    assert_eq!(skipping.get::<gst::ClockTime>("pts").unwrap(), time(8));
    let resumed = messages[1].structure().unwrap();
    assert_eq!(resumed.get::<u64>("skipped").unwrap(), skipped);
    assert!(resumed.get::<f64>("similarity").unwrap() < 0.98);
    let pts = resumed.get::<gst::ClockTime>("pts").unwrap();
    assert!(pts > time(48) && pts < time(56), "{pts}");
}

/// Amid a change of prompts frames are not compared, which does not mean that the picture moves.
#[test]
fn a_picture_that_stands_still_goes_on_to_while_prompts_change() {
    let rig = Rig::playing(
        &[
            ("t-index-list", "35"),
            ("similarity-filter", "true"),
            ("prompt", "a neon cat"),
        ],
        &rgb(),
    );
    let mut count = 0;
    let mut still = |frames: usize| {
        for _ in 0..frames {
            rig.push(buffer(picture(0), count));
            count += 1;
        }
    };
    still(20);
    // Twenty frames' time.
    let length = time(20).nseconds().to_string();
    set(
        &rig.element,
        &[("prompt-transition", &length), ("prompt", "a calm sea")],
    );
    let mut messages = Vec::new();
    wait_until("the prompts have changed", || {
        still(5);
        messages.extend(told(&rig));
        of(&messages, "prompt-applied").len() == 2
    });
    still(20);
    messages.extend(told(&rig));
    assert_eq!(of(&messages, "skipping").len(), 1, "{messages:?}");
    assert_eq!(of(&messages, "resumed").len(), 0, "{messages:?}");
}

/// Frames that fill a gap share the picture before them too, but that is not the filter's doing, and nothing stands still.
#[test]
fn frames_that_fill_gaps_are_not_the_filters() {
    for filter in ["false", "true"] {
        let settings = [("t-index-list", "35"), ("similarity-filter", filter)];
        let rig = Rig::playing(&settings, &rgb());
        for k in 0..20 {
            let mut frame = buffer(picture(4 * (k / 2)), k);
            if k % 2 == 1 {
                frame.make_mut().set_flags(gst::BufferFlags::GAP);
            }
            rig.push(frame);
        }
        assert_eq!(stat(&rig.element, "skipped"), 10);
        let messages = told(&rig);
        assert!(of(&messages, "skipping").is_empty(), "{messages:?}");
        // They are no sign of movement either, and do not count.
        if filter == "true" {
            let still = |k| rig.push(buffer(picture(0), k));
            (20..23).for_each(still);
            let mut gap = buffer(picture(0), 23);
            gap.make_mut().set_flags(gst::BufferFlags::GAP);
            rig.push(gap);
            (24..30).for_each(|k| rig.push(buffer(picture(4 * (k - 20)), k)));
            let messages = told(&rig);
            assert_eq!(of(&messages, "skipping").len(), 1, "{messages:?}");
            let resumed = of(&messages, "resumed").remove(0);
            assert_eq!(resumed.get::<u64>("skipped"), Ok(2));
        }
    }
}

#[test]
fn statistics_are_whole() {
    let rig = Rig::playing(TWO_STEPS, &rgb());
    set(&rig.element, &[("prompt", "a neon cat")]);
    rig.push_frames(0..9);
    let stats = rig.element.property::<gst::Structure>("stats");
    let number = |name: &str| stats.get::<u64>(name).unwrap();
    for (field, expected) in [
        ("processed", 9),
        ("skipped", 0),
        ("dropped", 0),
        ("repeated", 0),
        ("output", 8),
        ("vram", 0),
    ] {
        assert_eq!(number(field), expected, "{field}");
    }
    assert!(number("load-time-ns") > 0);
    let mut latency = gst::query::Latency::new();
    assert!(rig.sink.peer_query(&mut latency));
    assert_eq!(
        gst::ClockTime::from_nseconds(number("latency-ns")),
        latency.result().1
    );
    assert!(number("latency-ns") >= time(1).nseconds());
    for field in ["fps", "in-fps"] {
        let rate = stats.get::<f64>(field).unwrap();
        assert!(rate.is_finite() && rate > 0.0, "{field}: {rate}");
    }
    for stage in ["encode", "denoise", "decode"] {
        let quantile = |which| stats.get::<f64>(format!("{stage}-ms-{which}")).unwrap();
        assert!(0.0 < quantile("p50") && quantile("p50") <= quantile("p95"));
    }
    for (field, expected) in [
        ("prompt", "a neon cat"),
        ("device", "CPU"),
        ("model", "model"),
    ] {
        let found = stats.get::<&str>(field).unwrap();
        assert!(
            found == expected || field == "prompt" && found.is_empty(),
            "{field}: {found}"
        );
    }
    // What the property says of itself is what is in it.
    let blurb = rig.element.find_property("stats").unwrap();
    let blurb = blurb.blurb().unwrap();
    for (field, _) in stats.iter() {
        let field = field
            .trim_end_matches("-ms-p50")
            .trim_end_matches("-ms-p95");
        assert!(blurb.contains(field), "the blurb lacks {field}");
    }
}

fn load(rig: &Rig) -> bool {
    rig.element.emit_by_name("load", &[])
}

#[test]
fn a_model_is_loaded_before_the_element_starts() {
    use gst::ProgressType::{Complete, Start};
    let (one, other) = (Folder::model(), Folder::model());
    let path = |folder: &Folder| folder.path().to_str().unwrap().to_owned();
    let rig = Rig::new(&[("model", &path(&one))], Neighbours::default());
    assert!(!load(&rig), "in NULL");
    rig.element.set_state(gst::State::Ready).unwrap();
    assert!(told(&rig).is_empty());
    assert!(load(&rig));
    assert!(!load(&rig), "the same again");
    until(&rig, Complete);
    assert!(!load(&rig), "the same once it is there");
    assert!(stat(&rig.element, "load-time-ns") > 0);
    // Another one takes its place.
    set(&rig.element, &[("model", &path(&other))]);
    assert!(load(&rig));
    let messages = until(&rig, Complete);
    assert!(
        progress_text(messages.last().unwrap())
            .contains(other.path().file_name().unwrap().to_str().unwrap())
    );
    rig.play(&rgb());
    assert!(!load(&rig), "while it plays");
    rig.push_frames(0..2);
    rig.end();
    assert_eq!(rig.frames().len(), 2);
    let after = names(&told(&rig));
    assert!(
        !after.contains(&format!("{Start:?}")),
        "loaded twice: {after:?}"
    );
    let stats = rig.element.property::<gst::Structure>("stats");
    let model = stats.get::<&str>("model").unwrap();
    assert_eq!(Some(model), other.path().file_name().unwrap().to_str());

    // One that was loaded for another model is not taken, and one that failed is tried again.
    rig.stop();
    rig.element.set_state(gst::State::Ready).unwrap();
    assert!(load(&rig));
    let spoiled = unloadable();
    set(&rig.element, &[("model", &path(&spoiled))]);
    rig.element.set_state(gst::State::Paused).unwrap();
    until(&rig, gst::ProgressType::Error);
    rig.element.set_state(gst::State::Ready).unwrap();
    assert!(load(&rig));
    until(&rig, gst::ProgressType::Error);
    // Of one that is none it is said at once.
    told(&rig);
    set(&rig.element, &[("model", "/no/such/folder")]);
    assert!(!load(&rig));
    assert_eq!(names(&told(&rig)), ["error message"]);
    set(&rig.element, &[("model", &path(&one))]);
    rig.play(&rgb());
    rig.push_frames(0..1);
    rig.stop();
    // In READY only, and given up in NULL.
    rig.element.set_state(gst::State::Ready).unwrap();
    assert!(load(&rig));
    rig.element.set_state(gst::State::Null).unwrap();
    let messages = told(&rig);
    let begun = messages.iter().filter(|m| name(m) == "Start").count();
    let ended = messages
        .iter()
        .filter(|m| ["Complete", "Canceled"].contains(&&name(m)[..]));
    assert_eq!(begun, ended.count(), "{messages:?}");
}

/// Components that have not been loaded yet when the element stops are not loaded any more.
#[test]
fn loading_is_given_up_between_components() {
    let folder = Folder::model();
    let rig = Rig::new(
        &[("model", folder.path().to_str().unwrap())],
        Neighbours::default(),
    );
    // It may have been too far already, though hardly every time.
    let canceled = (0..20).any(|_| {
        rig.element.set_state(gst::State::Paused).unwrap();
        until(&rig, gst::ProgressType::Start);
        rig.element.set_state(gst::State::Null).unwrap();
        let names = names(&told(&rig));
        let components = names.iter().filter(|name| *name == "Continue").count();
        match names.last().unwrap().as_str() {
            "Canceled" => {
                assert!(components < 4, "{names:?}");
                true
            }
            // The prompt's thread starts last, or the model is there.
            last => {
                assert_eq!(last, "streamdiffusion-model-loaded");
                false
            }
        }
    });
    assert!(canceled);
    // It goes on from there.
    rig.play(&rgb());
    rig.push_frames(0..1);
    rig.stop();
}

#[test]
fn a_reset_begins_anew_after_the_frames_under_way() {
    let settings: &[Setting] = &[
        ("t-index-list", "32,45"),
        ("noise", "walk"),
        ("noise-walk-frames", "5"),
        ("prompt", "a neon cat"),
    ];
    let pictures = |frames: std::ops::Range<u64>| frames.map(|k| buffer(picture(0), k)).collect();
    let expected = restyle(settings, &rgb(), pictures(0..4));
    assert!(
        difference(&expected[0], &expected[3]) > 1,
        "the walk does nothing"
    );
    let rig = Rig::playing(settings, &rgb());
    for round in 0..3 {
        for k in 0..4 {
            rig.push(buffer(picture(0), 4 * round + k));
            let out = 4 * round + k;
            assert_eq!(stat(&rig.element, "output"), out, "frame {out}");
        }
        rig.element.emit_by_name::<()>("reset", &[]);
    }
    rig.end();
    let found = rig.pictures();
    assert_eq!(found.len(), 12);
    for (k, found) in found.iter().enumerate() {
        same(found, &expected[k % 4], &format!("frame {k}"));
    }
    assert_eq!(stat(&rig.element, "processed"), 12);

    // What the filter compares with is forgotten too.
    let filter = [("similarity-filter", "true"), ("ssf-max-skip", "100")];
    let rig = Rig::playing(&join(TWO_STEPS, &filter), &rgb());
    for round in 1..4 {
        (0..5).for_each(|k| rig.push(buffer(picture(0), k)));
        assert_eq!(stat(&rig.element, "processed"), round);
        rig.element.emit_by_name::<()>("reset", &[]);
    }
    rig.end();
    assert_eq!(rig.frames().len(), 15);

    // In immediate timing the stream is filled anew, and no older picture comes out.
    let rig = Rig::playing(&join(TWO_STEPS, &[("timing", "immediate")]), &rgb());
    for k in [0, 4, 8] {
        let expected = restyled(TWO_STEPS, k..k + 1).remove(0);
        rig.push(frame(k));
        same(&rig.pictures()[0], &expected, &format!("frame {k}"));
        rig.push(frame(k + 1));
        same(&rig.pictures()[0], &expected, &format!("after frame {k}"));
        rig.element.emit_by_name::<()>("reset", &[]);
    }
    assert!(rig.errors().is_empty());
}

fn launch(folder: &Folder, debug: &str, settings: &str, source: &str) -> (String, String) {
    let line = format!(
        "gst-launch-1.0 videotestsrc {source} num-buffers=5 pattern=black ! video/x-raw,format=RGB,width=64,height=64,framerate=25/1 ! \
         streamdiffusion name=it model={} {settings} ! fakesink",
        parity().display()
    );
    let log = folder.file("log");
    let output = tool("sh", folder, &["coreelements", "videotestsrc"])
        .args(["-c", &line])
        .env("GST_DEBUG", debug)
        .env("GST_DEBUG_NO_COLOR", "1")
        .env("GST_DEBUG_FILE", &log)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let log = std::fs::read_to_string(log).unwrap();
    (log, String::from_utf8(output.stdout).unwrap())
}

/// What the log tells of a frame, in order, without how long things took.
fn story(log: &str, ticket: u64) -> Vec<String> {
    let lines = log.lines().filter_map(|line| line.split_once("<it> "));
    lines
        .map(|(_, line)| line)
        .filter(|line| line.starts_with(&format!("Frame {ticket}: ")))
        .map(|line| line.split(" ms").next().unwrap())
        .map(|line| line.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.'))
        .map(|line| line.trim_end().to_owned())
        .collect()
}

#[test]
fn level_six_tells_the_story_of_a_frame_and_level_five_of_none() {
    let settings = "t-index-list=32,45 similarity-filter=true ssf-threshold=1";
    let (log, _) = launch(&Folder::new(), "streamdiffusion:6", settings, "");
    let told = story(&log, 3);
    let expected = [
        "Frame 3: in, pts 0:00:00.080000000, 64x64 RGB",
        "Frame 3: similarity 1.0000 to the last one processed, processed",
        "Frame 3: encoded in",
        "Frame 3: step 1 of 2 at timestep 359, in a call of 2 rows in",
        "Frame 3: step 2 of 2 at timestep 99, in a call of 2 rows in",
        "Frame 3: decoded in",
        "Frame 3: out, pts 0:00:00.080000000,",
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "{told:?}, not {expected:?}");
    }
    let out = log.lines().find(|line| line.contains("Frame 3: out"));
    assert!(
        out.unwrap()
            .contains(" ms after it came in; the latency reported is 0:00:00.0")
    );
    // One that is skipped.
    let (log, _) = launch(
        &Folder::new(),
        "streamdiffusion:6",
        "t-index-list=35 similarity-filter=true",
        "",
    );
    let told = story(&log, 4);
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[1].ends_with("skipped"), "{told:?}");

    let (log, _) = launch(&Folder::new(), "streamdiffusion:5", settings, "");
    assert!(log.contains("Progress of loading"), "nothing at all: {log}");
    assert!(!log.contains("Frame "), "{log}");
}

/// A live pipeline, which would go to PLAYING at once: with what it shows, gst-launch waits for the model first, so that
/// the first frames are not late.
#[test]
fn gst_launch_waits_for_the_progress() {
    let (_, out) = launch(&Folder::new(), "0", "", "is-live=true");
    let lines: Vec<_> = out.lines().collect();
    let at = |text: &str| {
        let found = lines.iter().position(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("no {text:?}: {out}"))
    };
    let order = [
        "Progress: (loading) loading model ",
        "Prerolled, waiting for progress to finish",
        "Progress: (loading) loaded model",
        "Setting pipeline to PLAYING",
    ];
    assert!(order.map(at).is_sorted(), "{out}");
    let components = lines
        .iter()
        .filter(|line| line.starts_with("Progress: (loading) loading "));
    assert_eq!(components.count(), 5, "{out}");
}
