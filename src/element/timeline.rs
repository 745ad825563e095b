//! What still has to leave the element, in order: frames under way and the events that came in among them.

use std::collections::VecDeque;

use super::runtime::Picture;
use super::worker::Finished;

/// Something that came in and has not left yet.
enum Entry {
    /// A frame: the input buffer without its memory, for timestamps, flags and metas, and what it is to show.
    Frame { input: gst::Buffer, shows: Shows },
    /// A serialized event.
    Event(gst::Event),
}

/// What a frame shows when it leaves.
enum Shows {
    /// The picture of this ticket, once it is finished.
    Ticket(u64),
    /// What the frame before it shows.
    Again,
    /// The input's own picture, which is in this buffer.
    Input(gst::Buffer),
}

/// What a frame that leaves shows.
pub enum Shown {
    /// A finished picture.
    Picture(Picture),
    /// What the frame before it showed.
    Again,
    /// The picture in this buffer of the input's format.
    Input(gst::Buffer),
}

/// Something that leaves now.
pub enum Departure {
    /// The input buffer of a frame, without its memory, and what is shown for it.
    Frame { input: gst::Buffer, shown: Shown },
    /// An event whose turn has come.
    Event(gst::Event),
}

/// The order in which frames and events came in, and the pictures that are finished.
#[derive(Default)]
pub struct Timeline {
    entries: VecDeque<Entry>,
    finished: VecDeque<Finished>,
    tickets: u64,
}

impl Timeline {
    /// Notes a frame that came in; its ticket names it on its way through the stream.
    pub fn frame(&mut self, input: gst::Buffer) -> u64 {
        self.tickets += 1;
        let shows = Shows::Ticket(self.tickets);
        self.entries.push_back(Entry::Frame { input, shows });
        self.tickets
    }

    /// Notes a frame that shows what the one before it shows.
    pub fn again(&mut self, input: gst::Buffer) {
        let shows = Shows::Again;
        self.entries.push_back(Entry::Frame { input, shows });
    }

    /// Notes a frame that shows the picture in `pixels`, a buffer of the input's format.
    pub fn pass(&mut self, input: gst::Buffer, pixels: gst::Buffer) {
        let shows = Shows::Input(pixels);
        self.entries.push_back(Entry::Frame { input, shows });
    }

    /// Whether there is a frame that has not left yet.
    pub fn has_frames(&self) -> bool {
        let is_frame = |entry: &Entry| matches!(entry, Entry::Frame { .. });
        self.entries.iter().any(is_frame)
    }

    /// Notes an event that must leave behind the frames that came before it.
    pub fn event(&mut self, event: gst::Event) {
        self.entries.push_back(Entry::Event(event));
    }

    /// Notes pictures that are finished.
    pub fn finish(&mut self, finished: Vec<Finished>) {
        self.finished.extend(finished);
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What leaves next, if it is ready.
    pub fn depart(&mut self) -> Option<Departure> {
        if let Entry::Frame {
            shows: Shows::Ticket(_),
            ..
        } = self.entries.front()?
            && self.finished.is_empty()
        {
            return None;
        }
        let (input, shows) = match self.entries.pop_front()? {
            Entry::Event(event) => return Some(Departure::Event(event)),
            Entry::Frame { input, shows } => (input, shows),
        };
        let shown = match shows {
            Shows::Ticket(ticket) => {
                let finished = self.finished.pop_front()?;
                debug_assert_eq!(
                    finished.ticket, ticket,
                    "the stream keeps the order of frames"
                );
                Shown::Picture(finished.picture)
            }
            Shows::Again => Shown::Again,
            Shows::Input(pixels) => Shown::Input(pixels),
        };
        Some(Departure::Frame { input, shown })
    }

    /// Forgets everything, as a flush does; gives the events that had not left.
    pub fn clear(&mut self) -> Vec<gst::Event> {
        self.finished.clear();
        let entries = self.entries.drain(..);
        entries
            .filter_map(|entry| match entry {
                Entry::Event(event) => Some(event),
                Entry::Frame { .. } => None,
            })
            .collect()
    }
}
