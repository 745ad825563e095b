//! Timed prompts: text with times on the pad `prompt`.

mod common;

use std::sync::mpsc;
use std::time::Duration;

use common::*;
use gst::prelude::*;

/// One step, so that a picture shows one prompt; and no guidance, which needs no other.
const ONE_STEP: &[Setting] = &[("t-index-list", "35"), ("cfg-type", "none")];
const OIL: &str = "oil painting";
const NEON: &str = "a neon cat";
const SEA: &str = "a calm sea";

/// What brings cues to a rig.
struct Show {
    src: gst::Pad,
    sink: gst::Pad,
}

impl Show {
    /// Linked, and with caps and a segment.
    fn on(rig: &Rig) -> Self {
        Self::with(rig, false)
    }

    fn with(rig: &Rig, live: bool) -> Self {
        let src = gst::Pad::builder(gst::PadDirection::Src)
            .query_function(move |pad, parent, query| match query.view_mut() {
                gst::QueryViewMut::Latency(query) => {
                    query.set(live, gst::ClockTime::ZERO, gst::ClockTime::NONE);
                    true
                }
                _ => gst::Pad::query_default(pad, parent, query),
            })
            .build();
        let sink = rig.element.request_pad_simple("prompt").unwrap();
        src.link(&sink).unwrap();
        let show = Self { src, sink };
        show.begin();
        show
    }

    fn begin(&self) {
        self.src.set_active(true).unwrap();
        assert!(self.event(gst::event::StreamStart::new("show")));
        let caps = gst::Caps::builder("text/x-raw").field("format", "utf8");
        assert!(self.event(gst::event::Caps::new(&caps.build())));
        self.segment();
    }

    fn segment(&self) {
        let segment = gst::FormattedSegment::<gst::ClockTime>::new();
        assert!(self.event(gst::event::Segment::new(&segment)));
    }

    fn event(&self, event: gst::Event) -> bool {
        self.src.push_event(event)
    }

    /// A cue that is in force from frame `k` on.
    fn cue(&self, k: u64, text: &str) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.src.push(cue(k, text.as_bytes()))
    }

    fn gap(&self, from: u64, to: u64) {
        assert!(self.event(gst::event::Gap::new(time(from), time(to - from))));
    }

    fn end(&self) {
        assert!(self.event(gst::event::Eos::new()));
    }

    fn flush(&self) {
        assert!(self.event(gst::event::FlushStart::new()));
        assert!(self.event(gst::event::FlushStop::new(true)));
        self.segment();
    }
}

fn cue(k: u64, text: &[u8]) -> gst::Buffer {
    buffer(text.to_vec(), k)
}

/// Frame `k` shows the same picture as all others, so that only prompts make a difference.
fn still(k: u64) -> gst::Buffer {
    buffer(picture(0), k)
}

/// What that becomes with this prompt.
fn expected(prompt: &str) -> Vec<u8> {
    let settings = join(ONE_STEP, &[("prompt", prompt)]);
    restyle(&settings, &rgb(), vec![still(0)]).remove(0)
}

fn playing(settings: &[Setting]) -> Rig {
    Rig::playing(&join(ONE_STEP, settings), &rgb())
}

/// The names of the prompts that the frames show which left since the last call.
#[track_caller]
fn prompts(rig: &Rig) -> String {
    let known = [OIL, NEON, SEA].map(|prompt| (prompt, expected(prompt)));
    let name = |picture: &Vec<u8>| {
        let prompt = known
            .iter()
            .find(|(_, known)| difference(known, picture) <= 1);
        prompt.map_or("other", |(prompt, _)| prompt.rsplit(' ').next().unwrap())
    };
    let shown: Vec<_> = rig.pictures().iter().map(name).collect();
    shown.join(" ")
}

/// Pushes frames on a thread of its own, which tells how that went.
fn pushing(rig: &Rig, frames: std::ops::Range<u64>) -> mpsc::Receiver<Result<(), gst::FlowError>> {
    let (sender, result) = mpsc::channel();
    let src = rig.src.clone();
    std::thread::spawn(move || {
        let result = frames
            .into_iter()
            .try_for_each(|k| src.push(still(k)).map(drop));
        sender.send(result)
    });
    result
}

/// Brings a cue for each of these frames on a thread of its own, which tells how that went; the last is another one.
fn bringing(
    show: &Show,
    frames: std::ops::Range<u64>,
) -> mpsc::Receiver<Result<(), gst::FlowError>> {
    let (sender, result) = mpsc::channel();
    let src = show.src.clone();
    std::thread::spawn(move || {
        let last = frames.end - 1;
        let text = |k| if k == last { SEA } else { NEON };
        let result = frames
            .into_iter()
            .try_for_each(|k| src.push(cue(k, text(k).as_bytes())).map(drop));
        sender.send(result)
    });
    result
}

#[track_caller]
fn done(result: &mpsc::Receiver<Result<(), gst::FlowError>>) -> Result<(), gst::FlowError> {
    result.recv_timeout(PATIENCE.into()).expect("it hangs")
}

/// Nothing comes within a time in which it would, if it did not wait.
fn waits<T>(result: &mpsc::Receiver<T>) -> bool {
    result.recv_timeout(Duration::from_millis(300)).is_err()
}

/// The frames that gst-launch-1.0 makes with this prompt and these cues, in a pipeline as one types it.
fn launched(steps: &str, prompt: &str, show: Option<&str>) -> Vec<Vec<u8>> {
    let folder = Folder::new();
    let plugins = [
        "coreelements",
        "videotestsrc",
        "typefindfunctions",
        "subparse",
    ];
    let mut command = tool("gst-launch-1.0", &folder, &plugins);
    command.args("-q videotestsrc num-buffers=12 pattern=ball !".split(' '));
    command.args("video/x-raw,format=RGB,width=64,height=64,framerate=25/1 !".split(' '));
    command.args("streamdiffusion name=s backend=onnxruntime-cpu".split(' '));
    command.arg(format!("model={}", parity().display()));
    command.arg(format!("t-index-list={steps}"));
    command.arg(format!("prompt={prompt}"));
    command.args("! filesink location=out.raw".split(' '));
    if let Some(show) = show {
        std::fs::write(folder.file("show.srt"), show).unwrap();
        command.args("filesrc location=show.srt ! subparse ! s.prompt".split(' '));
    }
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.is_empty(), "{told}");
    let bytes = std::fs::read(folder.file("out.raw")).unwrap();
    bytes.chunks(64 * 64 * 3).map(<[u8]>::to_vec).collect()
}

/// Every frame is what the plain property makes of it, with one step, and with three, which overlap.
#[test]
fn a_subtitle_file_drives_the_show() {
    const MIX: &str = "a calm sea:3 | a neon cat";
    let show = format!(
        "1\n00:00:00,100 --> 00:00:00,150\n<i>a neon</i>\ncat\n\n\
         2\n00:00:00,200 --> 00:00:00,240\n{MIX}\n\n\
         3\n00:00:00,320 --> 00:00:00,360\n{SEA}\n\n"
    );
    // The first cue's time is between two frames, those of the others are frames'.
    let expected = |k| match k {
        0..3 => OIL,
        3..5 => NEON,
        5..8 => MIX,
        _ => SEA,
    };
    for steps in ["35", "22,32,45"] {
        let found = launched(steps, OIL, Some(&show));
        assert_eq!(found.len(), 12);
        let plain = [OIL, NEON, MIX, SEA].map(|prompt| (prompt, launched(steps, prompt, None)));
        for (k, found) in found.iter().enumerate() {
            for (prompt, pictures) in &plain {
                let same = difference(found, &pictures[k]) <= 1;
                assert_eq!(same, *prompt == expected(k), "frame {k}, {prompt}, {steps}");
            }
        }
    }
}

#[test]
fn cues_hold_until_the_next_and_an_empty_one_gives_way_to_the_property() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    // A cue lasts beyond its duration, which is a frame's.
    show.cue(2, NEON).unwrap();
    show.cue(5, "").unwrap();
    show.cue(6, "  a  calm\nsea\0").unwrap();
    show.end();
    for k in 0..8 {
        rig.push(still(k));
    }
    assert_eq!(
        prompts(&rig),
        "painting painting cat cat cat painting sea sea"
    );
    assert!(rig.errors().is_empty());
}

/// Frames that go through the model together have one prompt: that of the last of them.
#[test]
fn a_group_goes_by_the_prompt_of_its_last_frame() {
    let rig = playing(&[("prompt", OIL), ("frame-buffer-size", "3")]);
    let show = Show::on(&rig);
    show.cue(4, NEON).unwrap();
    show.cue(6, SEA).unwrap();
    show.end();
    for k in 0..10 {
        rig.push(still(k));
    }
    rig.end();
    assert_eq!(
        prompts(&rig),
        "painting painting painting cat cat cat sea sea sea sea"
    );
}

#[test]
fn the_newest_change_wins() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    show.cue(1, NEON).unwrap();
    show.cue(500, SEA).unwrap();
    show.end();
    rig.push(still(0));
    rig.push(still(1));
    assert_eq!(prompts(&rig), "painting cat");
    // To the same as before: it is the newest all the same. It takes effect when it is encoded.
    set(&rig.element, &[("prompt", OIL)]);
    let painting = expected(OIL);
    let shown = |k| {
        rig.push(still(k));
        difference(&rig.pictures()[0], &painting) <= 1
    };
    assert!((2..400).any(shown));
    rig.push(still(499));
    rig.push(still(500));
    assert_eq!(prompts(&rig), "painting sea");
    assert_eq!(rig.element.property::<String>("prompt"), OIL);
}

#[test]
fn frames_wait_for_text_up_to_their_time() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    let result = pushing(&rig, 0..4);
    assert!(waits(&result));
    // Nothing before frame 2.
    show.gap(0, 2);
    wait_until("two frames leave", || stat(&rig.element, "output") == 2);
    assert!(waits(&result));
    show.cue(2, NEON).unwrap();
    wait_until("a third frame leaves", || stat(&rig.element, "output") == 3);
    assert!(waits(&result));
    show.end();
    done(&result).unwrap();
    assert_eq!(prompts(&rig), "painting painting cat cat");
    // After the end nothing more is taken, and nothing of it all went downstream.
    assert_eq!(show.cue(9, SEA), Err(gst::FlowError::Eos));
    rig.end();
    assert_eq!(rig.names(), ["eos"]);
}

#[test]
fn nothing_live_waits() {
    for (video, text) in [(true, false), (false, true)] {
        let latency = video.then_some(gst::ClockTime::ZERO);
        let neighbours = Neighbours {
            latency,
            ..Neighbours::default()
        };
        let settings = join(ONE_STEP, &[("prompt", OIL)]);
        keep_model();
        let rig = Rig::new(&settings, neighbours);
        rig.play(&rgb());
        let show = Show::with(&rig, text);
        done(&pushing(&rig, 0..3)).unwrap();
        show.cue(4, NEON).unwrap();
        let neon = expected(NEON);
        let shown = |k| {
            rig.push(still(k));
            rig.pictures().iter().any(|p| difference(p, &neon) <= 1)
        };
        assert!(!shown(3));
        assert!((4..400).any(shown), "video {video}, text {text}");
    }
}

#[test]
fn text_that_is_far_ahead_waits_and_a_flush_ends_that() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    let fill = || {
        let (sender, result) = mpsc::channel();
        let src = show.src.clone();
        std::thread::spawn(move || {
            let bring = |k| src.push(cue(k, NEON.as_bytes())).map(drop);
            sender.send((10..100).try_for_each(bring))
        });
        result
    };
    let result = fill();
    assert!(waits(&result));
    assert!(show.event(gst::event::FlushStart::new()));
    assert_eq!(done(&result), Err(gst::FlowError::Flushing));
    assert!(show.event(gst::event::FlushStop::new(true)));
    show.segment();
    // So does a stop, and so does taking the pad away; and frames that come by make room.
    let result = fill();
    assert!(waits(&result));
    for k in 0..100 {
        rig.push(still(k));
    }
    done(&result).unwrap();
    rig.take();
    show.flush();
    let result = fill();
    assert!(waits(&result));
    rig.element.release_request_pad(&show.sink);
    assert_eq!(done(&result), Err(gst::FlowError::Flushing));
    let show = Show::on(&rig);
    let src = show.src.clone();
    let (sender, result) = mpsc::channel();
    std::thread::spawn(move || {
        let bring = |k| src.push(cue(k, NEON.as_bytes())).map(drop);
        sender.send((10..100).try_for_each(bring))
    });
    assert!(waits(&result));
    rig.element.set_state(gst::State::Null).unwrap();
    assert_eq!(done(&result), Err(gst::FlowError::Flushing));
}

#[test]
fn frames_that_wait_let_go_at_a_flush_a_stop_and_when_the_pad_goes() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    let result = pushing(&rig, 0..3);
    assert!(waits(&result));
    assert!(rig.event(gst::event::FlushStart::new()));
    assert_eq!(done(&result), Err(gst::FlowError::Flushing));
    assert!(rig.event(gst::event::FlushStop::new(true)));
    assert!(rig.segment());
    // Unlinked, released, each loses no frame.
    let result = pushing(&rig, 0..3);
    assert!(waits(&result));
    show.src.unlink(&show.sink).unwrap();
    done(&result).unwrap();
    assert_eq!(prompts(&rig), "painting painting painting");
    show.src.link(&show.sink).unwrap();
    let result = pushing(&rig, 3..6);
    assert!(waits(&result));
    rig.element.release_request_pad(&show.sink);
    done(&result).unwrap();
    assert_eq!(prompts(&rig), "painting painting painting");
    assert!(rig.element.static_pad("prompt").is_none());
    let show = Show::on(&rig);
    let result = pushing(&rig, 6..9);
    assert!(waits(&result));
    rig.element.set_state(gst::State::Ready).unwrap();
    assert_eq!(done(&result), Err(gst::FlowError::Flushing));
    assert!(rig.errors().is_empty());
    // The pad outlives a stop, and works again.
    rig.stop();
    rig.play(&rgb());
    show.src.set_active(false).unwrap();
    show.begin();
    show.cue(1, NEON).unwrap();
    show.end();
    rig.push(still(0));
    rig.push(still(1));
    assert_eq!(prompts(&rig), "painting cat");
}

#[test]
fn a_pad_that_goes_takes_its_prompt_along() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    show.cue(0, NEON).unwrap();
    show.end();
    rig.push(still(0));
    // There is one such pad at a time.
    let template = rig.element.pad_template("prompt").unwrap();
    assert!(rig.element.request_pad(&template, None, None).is_none());
    rig.element.release_request_pad(&show.sink);
    rig.push(still(1));
    assert_eq!(prompts(&rig), "cat painting");
    // After a flush cues begin anew.
    let show = Show::on(&rig);
    show.cue(2, SEA).unwrap();
    show.end();
    rig.push(still(2));
    show.flush();
    show.cue(4, NEON).unwrap();
    rig.push(still(3));
    rig.push(still(4));
    assert_eq!(prompts(&rig), "sea painting cat");
}

#[test]
fn bad_cues_are_warnings_that_name_their_time() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    // The very first one, too.
    show.cue(0, "(cat:11)").unwrap();
    show.src.push(cue(1, b"caf\xe9")).unwrap();
    show.cue(2, NEON).unwrap();
    show.cue(3, "a | b:x").unwrap();
    show.src.push(cue(4, &[b'x'; (64 << 10) + 1])).unwrap();
    show.end();
    for k in 0..6 {
        rig.push(still(k));
    }
    assert_eq!(prompts(&rig), "painting painting cat cat cat cat");
    let warning = |message: &gst::Message| match message.view() {
        gst::MessageView::Warning(warning) => warning.error().message().to_owned(),
        other => panic!("{other:?}"),
    };
    let mut told: Vec<_> = rig.errors().iter().map(warning).collect();
    told.sort();
    for (cue, what) in [
        ("0:00:00.000000000", "weight 11"),
        ("0:00:00.040000000", "not UTF-8"),
        ("0:00:00.120000000", "part 2 has the weight \"x\""),
        ("0:00:00.160000000", "65537 bytes"),
    ] {
        let named = format!("the cue at {cue}");
        let of_cue = told.iter().filter(|told| told.contains(&named));
        let [told] = of_cue.collect::<Vec<_>>()[..] else {
            panic!("{named}: {told:#?}");
        };
        assert!(told.contains(what) && told.contains("old"), "{told}");
    }
    assert_eq!(told.len(), 4, "{told:#?}");
}

#[test]
fn the_pad_is_for_text_and_tells_nobody_else() {
    let rig = playing(&[("prompt", OIL)]);
    rig.take();
    let show = Show::on(&rig);
    let caps = show.src.peer_query_caps(None);
    assert_eq!(caps.to_string(), "text/x-raw, format=(string)utf8");
    assert!(!show.src.peer_query_accept_caps(&rgb()));
    let tags = gst::TagList::new();
    show.event(gst::event::Tag::new(tags));
    show.event(gst::event::CustomDownstreamOob::new(
        gst::Structure::new_empty("x"),
    ));
    let mut query = gst::query::Duration::new(gst::Format::Time);
    assert!(!show.src.peer_query(&mut query));
    show.end();
    assert!(rig.take().is_empty());
    // A segment that does not begin at 0 and goes at another rate.
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_rate(2.0);
    segment.set_start(time(100));
    segment.set_stop(time(200));
    segment.set_time(time(0));
    assert!(show.event(gst::event::Segment::new(&segment)));
    // Over before it begins; begins before it; in it; behind it.
    for (k, text) in [(90, SEA), (99, NEON), (106, SEA), (300, OIL)] {
        let mut buffer = cue(k, text.as_bytes());
        buffer.make_mut().set_duration(time(2));
        show.src.push(buffer).unwrap();
    }
    show.end();
    for k in 0..5 {
        rig.push(still(k));
    }
    assert_eq!(prompts(&rig), "cat cat cat sea sea");
}

/// Cues without times are for whoever types: each is in force at once.
#[test]
fn cues_without_times_are_in_force_at_once() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    for (k, prompt) in [(0, NEON), (1, SEA), (2, OIL)] {
        let text = gst::Buffer::from_slice(prompt.as_bytes());
        show.src.push(text).unwrap();
        rig.push(still(2 * k));
        rig.push(still(2 * k + 1));
    }
    assert_eq!(prompts(&rig), "cat cat sea sea painting painting");
}

/// What has no times says so by its segment: a frame does not wait for text that may never come, whoever types it.
#[test]
fn text_from_a_source_of_bytes_is_in_force_at_once() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    let bytes = gst::FormattedSegment::<gst::format::Bytes>::new();
    assert!(show.event(gst::event::Segment::new(&bytes)));
    done(&pushing(&rig, 0..1)).unwrap();
    show.src.push(cue(9, NEON.as_bytes())).unwrap();
    done(&pushing(&rig, 1..3)).unwrap();
    // From the next segment on there are times again.
    show.segment();
    let result = pushing(&rig, 3..5);
    assert!(waits(&result));
    show.cue(4, SEA).unwrap();
    done(&result).unwrap();
    assert_eq!(prompts(&rig), "painting cat cat cat sea");
    assert!(rig.errors().is_empty());
}

/// Such a source sends its segment with the first text only; until then it tells by what it can seek in.
#[test]
fn nobody_waits_for_what_will_be_typed() {
    let rig = playing(&[("prompt", OIL)]);
    let src = gst::Pad::builder(gst::PadDirection::Src)
        .query_function(|pad, parent, query| match query.view_mut() {
            gst::QueryViewMut::Seeking(seeking) => seeking.format() == gst::Format::Bytes,
            _ => gst::Pad::query_default(pad, parent, query),
        })
        .build();
    let sink = rig.element.request_pad_simple("prompt").unwrap();
    src.link(&sink).unwrap();
    src.set_active(true).unwrap();
    done(&pushing(&rig, 0..3)).unwrap();
    assert_eq!(prompts(&rig), "painting painting painting");
}

/// An offset of a pad puts cues earlier, some before anything.
#[test]
fn cues_from_before_the_first_frame_are_for_it() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    show.src.set_offset(-(time(3).nseconds() as i64));
    show.segment();
    show.cue(1, OIL).unwrap();
    show.cue(2, NEON).unwrap();
    let result = pushing(&rig, 0..3);
    assert!(waits(&result));
    show.cue(4, SEA).unwrap();
    assert!(waits(&result));
    show.end();
    done(&result).unwrap();
    assert_eq!(prompts(&rig), "cat sea sea");
}

/// A video that has nothing to show for a while holds up no text.
#[test]
fn cues_go_by_in_gaps_of_the_video() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    let result = bringing(&show, 0..40);
    assert!(waits(&result));
    for k in (0..80).step_by(10) {
        assert!(rig.event(gst::event::Gap::new(time(k), time(10))));
    }
    done(&result).unwrap();
    show.end();
    done(&pushing(&rig, 80..81)).unwrap();
    assert_eq!(prompts(&rig), "sea");
}

/// Cues whose frames are not restyled come and go like those of others, so that text that is far ahead does not wait for
/// ever, and a demuxer behind it with it.
#[test]
fn cues_go_by_with_frames_that_pass() {
    let rig = playing(&[("prompt", OIL), ("bypass", "true")]);
    let show = Show::on(&rig);
    let result = bringing(&show, 0..100);
    assert!(waits(&result));
    // Frame after frame, and the last one again, until all text is there.
    let mut k = 0;
    wait_until("the text has come", || {
        rig.push(still(k));
        k = 89.min(k + 1);
        result.try_recv().is_ok_and(|result| result.is_ok())
    });
    show.end();
    rig.take();
    set(&rig.element, &[("bypass", "false")]);
    rig.push(still(90));
    assert_eq!(prompts(&rig), "cat");
    // Frames without times follow upon those that passed.
    set(&rig.element, &[("bypass", "true")]);
    let untimed = |k| {
        let mut frame = still(k);
        frame.make_mut().set_pts(gst::ClockTime::NONE);
        rig.push(frame);
    };
    (91..100).for_each(untimed);
    rig.take();
    set(&rig.element, &[("bypass", "false")]);
    untimed(100);
    assert_eq!(prompts(&rig), "sea");
}

/// When the video has ended no frame comes that text could wait for; a demuxer must get to the end of its sound.
#[test]
fn text_goes_on_after_the_video() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    let result = bringing(&show, 10..100);
    rig.push_frames(0..1);
    assert!(waits(&result));
    rig.end();
    done(&result).unwrap();
    // What came last is there when the video goes on.
    assert!(rig.event(gst::event::StreamStart::new("more")));
    assert!(rig.caps(&rgb()));
    assert!(rig.segment());
    rig.take();
    show.end();
    rig.push(still(99));
    assert_eq!(prompts(&rig), "sea");
    show.flush();
    let result = bringing(&show, 100..200);
    assert!(waits(&result));
    assert!(show.event(gst::event::FlushStart::new()));
    assert_eq!(done(&result), Err(gst::FlowError::Flushing));
}

/// A cue holds until the next one, also where the segment begins between them, as after a seek.
#[test]
fn a_cue_from_before_the_segment_is_in_force_in_it() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_start(time(100));
    segment.set_stop(time(200));
    assert!(show.event(gst::event::Segment::new(&segment)));
    for (k, text) in [(50, NEON), (90, SEA), (102, NEON), (200, SEA)] {
        show.cue(k, text).unwrap();
    }
    show.end();
    for k in 0..4 {
        rig.push(still(k));
    }
    rig.push(still(300));
    assert_eq!(prompts(&rig), "sea sea cat cat cat");
    // However many there are: frames wait for the last of them.
    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::new(true));
    assert!(rig.segment());
    assert!(show.event(gst::event::FlushStart::new()));
    assert!(show.event(gst::event::FlushStop::new(true)));
    assert!(show.event(gst::event::Segment::new(&segment)));
    let result = pushing(&rig, 0..3);
    done(&bringing(&show, 10..60)).unwrap();
    show.cue(102, OIL).unwrap();
    show.end();
    done(&result).unwrap();
    assert_eq!(prompts(&rig), "sea sea painting");
}

/// Backwards, as in a segment of a negative rate, time runs from its end to its start.
#[test]
fn backwards_a_cue_comes_into_force_at_its_end() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_rate(-1.0);
    segment.set_start(time(0));
    segment.set_stop(time(10));
    assert!(show.event(gst::event::Segment::new(&segment)));
    let result = pushing(&rig, 0..10);
    assert!(waits(&result));
    for (k, text) in [(7, SEA), (3, NEON)] {
        let mut buffer = cue(k, text.as_bytes());
        buffer.make_mut().set_duration(time(2));
        show.src.push(buffer).unwrap();
    }
    wait_until("six frames leave", || stat(&rig.element, "output") == 6);
    assert!(waits(&result));
    // From frame 2 back to frame 1 there is none.
    assert!(show.event(gst::event::Gap::new(time(1), time(2))));
    wait_until("nine frames leave", || stat(&rig.element, "output") == 9);
    assert!(waits(&result));
    show.end();
    done(&result).unwrap();
    assert_eq!(
        prompts(&rig),
        "painting sea sea sea sea cat cat cat cat cat"
    );
}

#[test]
fn odd_cues_do_no_harm() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    show.src
        .push(cue(0, b"\xef\xbb\xbfa\0 neon\x1b\0cat\n\0\0"))
        .unwrap();
    show.src.push(cue(1, b"a | b:x\0y")).unwrap();
    show.src.push(cue(2, b"\0 \0")).unwrap();
    show.src.push(cue(3, &[])).unwrap();
    let mut last = gst::Buffer::from_slice(SEA);
    last.make_mut().set_pts(gst::ClockTime::MAX);
    last.make_mut().set_duration(gst::ClockTime::MAX);
    show.src.push(last).unwrap();
    show.end();
    for k in 0..4 {
        rig.push(still(k));
    }
    assert_eq!(prompts(&rig), "cat cat painting painting");
    let told = rig.errors();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].type_(), gst::MessageType::Warning, "{told:?}");
}

/// With neither the first cue nor the property's prompt to begin with, each frame is an error, and nothing hangs.
#[test]
fn two_bad_prompts_at_the_start_are_errors_again_and_again() {
    let rig = playing(&[("prompt", "(ink:99)")]);
    let show = Show::on(&rig);
    show.cue(0, "(cat:11)").unwrap();
    show.end();
    for _ in 0..3 {
        let result = pushing(&rig, 0..1);
        assert_eq!(done(&result), Err(gst::FlowError::Error));
        assert!(rig.error().message().contains("weight 99"));
    }
    set(&rig.element, &[("prompt", OIL)]);
    done(&pushing(&rig, 1..2)).unwrap();
    assert_eq!(prompts(&rig), "painting");
}

/// Seeks of the video go to the cues too, so that they are those of where it goes.
#[test]
fn seeks_go_to_cues_too() {
    let rig = playing(&[("prompt", OIL)]);
    let show = Show::on(&rig);
    let seeks = |pad: &gst::Pad| {
        let (sender, seeks) = mpsc::channel();
        pad.add_probe(gst::PadProbeType::EVENT_UPSTREAM, move |_, info| {
            if let Some(gst::PadProbeData::Event(event)) = &info.data
                && event.type_() == gst::EventType::Seek
            {
                sender.send(event.seqnum()).unwrap();
            }
            gst::PadProbeReturn::Ok
        });
        seeks
    };
    let (video, text) = (seeks(&rig.src), seeks(&show.src));
    let seek = gst::event::Seek::new(
        1.0,
        gst::SeekFlags::FLUSH,
        gst::SeekType::Set,
        time(5),
        gst::SeekType::None,
        gst::ClockTime::NONE,
    );
    let seqnum = seek.seqnum();
    rig.sink.push_event(seek);
    assert_eq!(video.try_recv(), Ok(seqnum));
    assert_eq!(text.try_recv(), Ok(seqnum));
}
