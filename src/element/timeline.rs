//! What still has to leave the element, in order: frames under way and the events that came in among them.

use std::collections::VecDeque;

use super::runtime::Picture;
use super::worker::Finished;

/// Something that came in and has not left yet.
enum Entry {
    /// A frame: the input buffer without its memory, for timestamps, flags and metas.
    Frame { ticket: u64, input: gst::Buffer },
    /// A serialized event.
    Event(gst::Event),
}

/// Something that leaves now.
pub enum Departure {
    /// A finished picture and the input buffer it is shown for.
    Frame {
        input: gst::Buffer,
        picture: Picture,
    },
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
        let ticket = self.tickets;
        self.entries.push_back(Entry::Frame { ticket, input });
        ticket
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
        if let Entry::Frame { .. } = self.entries.front()?
            && self.finished.is_empty()
        {
            return None;
        }
        match self.entries.pop_front()? {
            Entry::Event(event) => Some(Departure::Event(event)),
            Entry::Frame { ticket, input } => {
                let finished = self.finished.pop_front()?;
                debug_assert_eq!(
                    finished.ticket, ticket,
                    "the stream keeps the order of frames"
                );
                let picture = finished.picture;
                Some(Departure::Frame { input, picture })
            }
        }
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
