//! A film, what changes while it runs, and what a stream makes of it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use gststreamdiffusion::engine::Model;
use gststreamdiffusion::model::{ModelFolder, SchedulerConfig};
use gststreamdiffusion::stream::{
    CfgType, Conditioning, Contexts, Counters, Guidance, Interpolation, Method, Mode, Morph,
    Settings, Stream, Target, Variation,
};

use crate::place::{Place, SIZE};

/// From frame to frame, in nanoseconds.
const FRAME: u64 = 40_000_000;

/// Prompts from a frame on, in force after so many frames.
pub struct Prompts {
    pub from: usize,
    pub prompt: &'static str,
    pub negative: &'static str,
    pub over: u64,
}

/// A film, and how it is restyled.
pub struct Film {
    pub name: &'static str,
    pub frames: usize,
    /// Frames that differ hardly from the one before.
    pub still: Range<usize>,
    /// How many frames enter together.
    pub group: usize,
    /// What is in force from each frame on.
    pub settings: fn(usize) -> Settings,
    /// The first from frame 0 on.
    pub prompts: &'static [Prompts],
    pub interpolation: Interpolation,
}

/// Two steps without guidance, and nothing else.
pub fn plain() -> Settings {
    Settings {
        num_inference_steps: 50,
        t_index_list: vec![32, 45],
        method: Method::Lcm,
        guidance: Guidance {
            cfg_type: CfgType::None,
            scale: 1.0,
            delta: 1.0,
        },
        mode: Mode::ImageToImage,
        seed: 2,
        variation: Variation::Fixed,
        add_noise: true,
        similarity: None,
        mix: 1.0,
    }
}

/// The same with these steps.
pub fn steps(t_index_list: &[usize]) -> Settings {
    Settings {
        t_index_list: t_index_list.to_vec(),
        ..plain()
    }
}

/// The same with guidance of this kind and scale.
pub fn guided(t_index_list: &[usize], cfg_type: CfgType, scale: f64) -> Settings {
    Settings {
        guidance: Guidance {
            cfg_type,
            scale,
            delta: 1.0,
        },
        ..steps(t_index_list)
    }
}

impl Film {
    /// Frame `k`: colours that go by, with an edge.
    fn frame(&self, k: usize) -> Vec<u8> {
        let (width, height) = SIZE;
        let moved = match self.still.contains(&k) {
            true => self.still.start,
            false => k,
        };
        let mut bytes = Vec::with_capacity(3 * width * height);
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let edge = if (x + 5 * moved) % width > width / 2 {
                70
            } else {
                0
            };
            // One pixel differs where the picture stands still.
            let dot = usize::from((x, y) == (k % width, 9)) * 40;
            let codes = [
                30 + 2 * y + edge,
                40 + x + y / 2 + dot,
                90 + edge / 2 + (x * y + 11 * moved) % 64,
            ];
            bytes.extend(codes.map(|code| code as u8));
        }
        bytes
    }

    /// What comes out at `place`, frame by frame, and how many frames went which way. The next frame comes while one is
    /// computed, and the last one goes.
    pub fn play<P: Place>(&self, folder: &ModelFolder, place: &P) -> (Vec<Vec<u8>>, Counters) {
        let model = place.model();
        let scheduler: SchedulerConfig = folder.scheduler().clone();
        let mut morph = Morph::new(target(&*model, &self.prompts[0]));
        let mut stream = Stream::new(
            place.device(),
            model.clone(),
            scheduler,
            SIZE,
            self.group,
            (self.settings)(0),
            morph.in_force().clone(),
        )
        .unwrap();
        let (mut going, mut out) = (VecDeque::new(), Vec::new());
        let mut take = |going: &mut VecDeque<P::Going>, most: usize| {
            while going.len() > most {
                out.extend(going.pop_front().map(|going| place.frame(going)));
            }
        };
        let mut next = place.begin(&self.frame(0));
        let mut due = 0;
        for k in 0..self.frames {
            stream.configure(&(self.settings)(k)).unwrap();
            let now = Some(FRAME * k as u64);
            if let Some(prompts) = self.prompts[1..].iter().find(|prompts| prompts.from == k) {
                let (target, length) = (target(&*model, prompts), prompts.over * FRAME);
                morph.turn(target, length, now, self.interpolation);
            }
            if let Some(conditioning) = morph.at(now, self.interpolation) {
                stream.set_conditioning(conditioning);
            }
            let coming = std::mem::replace(&mut next, place.begin(&self.frame(k + 1)));
            let mut shown = stream.submit(place.picture(coming), k).unwrap();
            if k + 1 == self.frames {
                shown.extend(stream.drain().unwrap());
            }
            for shown in shown {
                assert_eq!(shown.tag, due, "{}", self.name);
                due += 1;
                going.push_back(place.show(&shown.picture));
                take(&mut going, 1);
            }
        }
        take(&mut going, 0);
        assert_eq!(out.len(), self.frames, "{}", self.name);
        (out, stream.counters())
    }
}

/// What a stream is given of prompts.
fn target<M: Model>(model: &M, prompts: &Prompts) -> Target<M> {
    let text = |text| Arc::new(model.encode_text(Some(text), 1).unwrap());
    Target {
        conditioning: Conditioning {
            prompt: Contexts::new(text(prompts.prompt)),
            negative: Contexts::new(text(prompts.negative)),
        },
        fillers: [text(""), text("")],
    }
}
