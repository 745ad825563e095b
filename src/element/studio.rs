//! What the worker's thread works with: a runtime, and the stream on it.

use std::sync::Arc;
use std::sync::mpsc;

use parking_lot::Mutex;

use super::Mode;
use super::cues::Cue;
use super::encoding::Encoded;
use super::prompts::PromptEncoder;
use super::runtime::{Input, LoadedModel, Runtime, TensorOf};
use super::settings::{Prompts, Settings};
use super::stats::Stats;
use super::story::listener;
use super::watch::Watch;
use super::worker::{Finished, Frame, Job, Moment, Observer, Restyled, guarded};
use crate::error::{Error, Result};
use crate::stream::{Expected, Morph, Shown, Stream};

/// Makes pictures of frames.
pub struct Studio<R: Runtime> {
    prompts: PromptEncoder<R::Model>,
    /// The prompts asked for last, and the cue that has them, if one does.
    wanted: Option<(Prompts, Option<Arc<Cue>>)>,
    /// Prompts that came without being waited for.
    arrived: Option<Encoded<R::Model>>,
    /// The properties looked at last.
    applied: Option<Arc<Settings>>,
    /// The properties in force: those looked at last, unless they could not be taken over.
    in_force: Option<Arc<Settings>>,
    /// The prompts in force.
    morph: Option<Morph<R::Model>>,
    running: Option<Running<R>>,
    /// The picture of the frame that is asked for next.
    announced: Option<Announced<R>>,
    watch: Watch,
    /// Dropped last: what the others hold lives on its device.
    runtime: R,
}

type ShownBy<R> = Shown<TensorOf<R>, u64>;
type StreamOf<R> = Stream<<R as Runtime>::Device, <R as Runtime>::Model, u64>;

/// A picture, and the ticket of its frame.
struct Announced<R: Runtime> {
    ticket: u64,
    picture: Result<Arrived<R>>,
}

/// A picture of this width and height.
struct Arrived<R: Runtime> {
    size: (usize, usize),
    place: Place<R>,
}

/// How far a picture has come.
enum Place<R: Runtime> {
    /// It is taken in when its turn comes.
    Here(Input),
    /// It is on the device, and being compared.
    There(Expected<R::Device>),
}

/// A stream and what it was made for.
struct Running<R: Runtime> {
    stream: StreamOf<R>,
    /// Width and height.
    size: (usize, usize),
    primed: bool,
}

impl<R: Runtime> Studio<R> {
    /// With nothing under way.
    pub fn new(runtime: R) -> Result<Self> {
        Ok(Self {
            prompts: PromptEncoder::new(runtime.loaded().model.clone())?,
            runtime,
            wanted: None,
            applied: None,
            in_force: None,
            arrived: None,
            morph: None,
            running: None,
            announced: None,
            watch: Watch::default(),
        })
    }

    /// The model.
    pub fn loaded(&self) -> LoadedModel {
        self.runtime.handle()
    }

    /// Does jobs until nobody can ask for any more.
    pub fn serve(
        &mut self,
        jobs: &mpsc::Receiver<Job>,
        stats: &Mutex<Stats>,
        observer: &impl Observer,
    ) {
        for job in jobs {
            match job {
                Job::Model(reply) => reply.send(Ok(self.runtime.handle())),
                Job::Expect(ticket, input) => self.expect(ticket, input),
                // A flush or a stop came first.
                Job::Frame(_, reply) if !reply.is_wanted() => {}
                Job::Frame(frame, reply) => {
                    let restyled = guarded(|| self.restyle(*frame, observer));
                    if restyled.is_err() {
                        self.let_go();
                    }
                    self.tell(stats);
                    reply.send(restyled);
                }
                Job::Write(picture, output, reply) => {
                    reply.send(guarded(|| self.runtime.write(&picture, *output)));
                }
                Job::Drain(reply) => {
                    let finished = guarded(|| self.drain(observer));
                    self.tell(stats);
                    reply.send(finished);
                }
                Job::Prepare(settings, cue) => {
                    self.prompts.prepare(self.prompts_of(&settings, Some(&cue)));
                }
                Job::Reset => self.forget(Stream::reset),
                Job::Renew => self.forget(Stream::renew),
            }
        }
    }

    /// Forgets frames, and what else `forget` says of the stream.
    fn forget(&mut self, forget: impl FnOnce(&mut StreamOf<R>)) {
        if self.announced.take().is_some() {
            self.let_go();
        }
        if let Some(running) = &mut self.running {
            forget(&mut running.stream);
            running.primed = false;
        }
        self.watch.forget();
    }

    /// Takes note of the picture of the frame that is asked for next. If it is to be compared, that begins now, behind what the
    /// device is at: what comes of it is there when its turn comes.
    fn expect(&mut self, ticket: u64, input: Input) {
        let picture = guarded(|| {
            let size = input.size()?;
            let place = match &self.running {
                Some(running) if running.size == size && running.stream.compares() => {
                    let picture = self.runtime.import(input)?;
                    Place::There(running.stream.expect(picture)?)
                }
                _ => Place::Here(input),
            };
            Ok(Arrived { size, place })
        });
        self.announced = Some(Announced { ticket, picture });
    }

    /// Lets go of frames that the device may be reading still, where nobody waits for what comes of them.
    fn let_go(&mut self) {
        // Somebody has been told of an error, or what comes next is.
        let _ = self.runtime.finish();
    }

    fn tell(&self, stats: &Mutex<Stats>) {
        if let Some(running) = &self.running {
            let launched = self.runtime.launched();
            let mut stats = stats.lock();
            stats.update(&running.stream, running.size, launched);
            stats.prompts = self.watch.prompts().cloned();
        }
    }

    fn restyle(&mut self, frame: Frame, observer: &impl Observer) -> Result<Restyled> {
        let Frame {
            ticket,
            stamp,
            settings,
            moment,
            prime,
            again,
        } = frame;
        let announced = self.announced.take();
        let Some(Announced { picture, .. }) = announced.filter(|known| known.ticket == ticket)
        else {
            return Err(Error::engine(
                "worker",
                "was given no picture; this is a bug",
            ));
        };
        self.runtime.begin().inspect_err(|_| self.running = None)?;
        let Arrived { size, place } = picture?;
        self.want_prompts(&settings, &moment)?;
        if self.morph.is_none() {
            self.begin_prompts(&settings, observer).inspect_err(|_| {
                // The next frame asks anew.
                self.wanted = None;
            })?;
        }
        let mut running = match self.running.take() {
            Some(running) if running.size == size => running,
            _ => self.start(size, &settings)?,
        };
        self.apply(&mut running.stream, &settings, observer);
        self.apply_prompts(&mut running.stream, &settings, &moment, observer);
        running.stream.listen(observer.teller().map(listener));
        self.watch.come(stamp);
        let before = running.stream.counters().processed;
        let primes = prime && !running.primed;
        let shown = self.advance(&mut running, place, ticket, (prime, again));
        if primes && shown.is_ok() {
            self.watch.entered(stamp, observer);
        }
        self.look(&running, observer);
        let shown = shown?;
        let computing = self.runtime.submit()?;
        let delay = running.stream.delay();
        let group = running.stream.frame_buffer_size();
        let processed = running.stream.counters().processed > before;
        self.running = Some(running);
        Ok(Restyled {
            finished: shown.into_iter().map(Self::finished).collect(),
            delay,
            group,
            processed,
            computing,
        })
    }

    /// Has the stream take in a frame.
    fn advance(
        &mut self,
        running: &mut Running<R>,
        place: Place<R>,
        ticket: u64,
        (prime, again): (bool, bool),
    ) -> Result<Vec<ShownBy<R>>> {
        let picture = match place {
            Place::Here(input) => Expected::new(self.runtime.import(input)?),
            Place::There(picture) => picture,
        };
        if prime && !running.primed {
            running.stream.prime(&picture, &ticket)?;
            running.primed = true;
        }
        match again {
            true => running.stream.submit_again(picture, ticket),
            false => running.stream.submit_expected(picture, ticket),
        }
    }

    /// Finishes all frames under way.
    fn drain(&mut self, observer: &impl Observer) -> Result<Vec<Finished>> {
        let Some(mut running) = self.running.take() else {
            return Ok(Vec::new());
        };
        let shown = running.stream.drain();
        self.look(&running, observer);
        self.running = Some(running);
        let finished = self.runtime.finish();
        let shown = shown?;
        finished?;
        Ok(shown.into_iter().map(Self::finished).collect())
    }

    /// Tells what is worth telling of the frames that came in last.
    fn look(&mut self, running: &Running<R>, observer: &impl Observer) {
        let similarity = running.stream.similarity();
        let settings = self.in_force.as_ref();
        let filter = settings.and_then(|settings| settings.similarity());
        let alike = match (similarity, filter) {
            (Some(similarity), Some(filter)) => {
                Some(filter.skip_probability(similarity.into()) > 0.0)
            }
            // As amid a change of prompts, which says nothing of the pictures.
            (None, Some(_)) if settings.is_some_and(|s| s.mode == Mode::ImageToImage) => None,
            _ => Some(false),
        };
        let counters = running.stream.counters();
        self.watch.look(counters, similarity, alike, observer);
    }

    fn finished(shown: ShownBy<R>) -> Finished {
        Finished {
            picture: R::picture(shown.picture),
            ticket: shown.tag,
        }
    }

    /// The prompts in force with these properties and this cue.
    fn prompts_of(&self, settings: &Settings, cue: Option<&Arc<Cue>>) -> Prompts {
        let mut prompts = settings.prompts(self.runtime.loaded().folder.manifest());
        if let Some(cue) = cue {
            prompts.prompt.clone_from(&cue.text);
        }
        prompts
    }

    /// Asks for the prompts of a frame, if they are other ones than those of the frame before.
    fn want_prompts(&mut self, settings: &Settings, moment: &Moment) -> Result<()> {
        let prompts = self.prompts_of(settings, moment.cue.as_ref());
        let before = self.wanted.replace((prompts.clone(), moment.cue.clone()));
        if let Some((wanted, _)) = &before
            && *wanted == prompts
        {
            return Ok(());
        }
        self.arrived = self.prompts.take_prepared(&prompts);
        if self.arrived.is_none() {
            let needs = self.running.as_ref().map(|running| running.stream.needs());
            self.prompts.want(prompts.clone(), needs);
            if moment.exact && before.is_some_and(|(_, cue)| cue != moment.cue) {
                self.arrived = Some(self.prompts.wait_for(&prompts)?);
            }
        }
        Ok(())
    }

    /// Waits for the first prompts. Those of a cue that cannot be had give way to the properties' own.
    fn begin_prompts(&mut self, settings: &Settings, observer: &impl Observer) -> Result<()> {
        let Some((prompts, cue)) = self.wanted.clone() else {
            return Err(Error::engine("text_encoder", "was asked for no prompt"));
        };
        let mut encoded = match self.arrived.take() {
            Some(encoded) => encoded,
            None => self.prompts.wait_for(&prompts)?,
        };
        if let (Err(error), Some(cue)) = (&encoded.result, &cue) {
            observer.change_refused(&of_cue(error.clone(), cue));
            let own = self.prompts_of(settings, None);
            self.prompts.want(own.clone(), None);
            encoded = self.prompts.wait_for(&own)?;
        }
        if let Some(cut) = &encoded.cut {
            observer.warned(cut);
        }
        self.morph = Some(Morph::new(encoded.result?));
        self.watch.turns(encoded.prompts, 0);
        self.watch.turned();
        Ok(())
    }

    /// A new stream, with the properties in force if there are any: newer ones are for [`Self::apply`] to take over or
    /// refuse.
    fn start(&mut self, size: (usize, usize), settings: &Arc<Settings>) -> Result<Running<R>> {
        let Some(morph) = &self.morph else {
            return Err(Error::engine("text_encoder", "gave no prompt yet"));
        };
        let conditioning = morph.in_force().clone();
        let settings = self.in_force.clone().unwrap_or_else(|| settings.clone());
        let loaded = self.runtime.loaded();
        let folder = &loaded.folder;
        let stream = Stream::new(
            self.runtime.device(),
            loaded.model.clone(),
            folder.scheduler().clone(),
            size,
            settings.frame_buffer_size as usize,
            settings.stream(folder.manifest(), folder.scheduler().method)?,
            conditioning,
        )?;
        if self.in_force.is_none() {
            self.in_force = Some(settings.clone());
            self.applied = Some(settings);
        }
        self.watch.begin();
        Ok(Running {
            stream,
            size,
            primed: false,
        })
    }

    /// Takes over live changes. What cannot be done is told once and leaves the old values in force.
    fn apply(
        &mut self,
        stream: &mut StreamOf<R>,
        settings: &Arc<Settings>,
        observer: &impl Observer,
    ) {
        if self.applied.as_ref() != Some(settings) {
            self.applied = Some(settings.clone());
            let folder = &self.runtime.loaded().folder;
            let changed = settings.stream(folder.manifest(), folder.scheduler().method);
            match changed.and_then(|settings| stream.configure(&settings)) {
                Ok(()) => self.in_force = Some(settings.clone()),
                Err(error) => observer.change_refused(&error),
            }
        }
    }

    /// Takes over prompts that are ready, and what of a change of prompts is due.
    fn apply_prompts(
        &mut self,
        stream: &mut StreamOf<R>,
        settings: &Settings,
        moment: &Moment,
        observer: &impl Observer,
    ) {
        let Some(morph) = &mut self.morph else {
            return;
        };
        let time = moment.time.map(gst::ClockTime::nseconds);
        let interpolation = settings.prompt_interpolation.into();
        let arrived = self.arrived.take().map(Ok);
        let wanted = self.wanted.as_ref().map(|(wanted, _)| wanted);
        let settled = wanted.is_some() && wanted == self.watch.prompts().map(|p| &**p);
        match arrived.or_else(|| self.prompts.take_new()) {
            // Asked for and taken back, or asked for once more.
            Some(Ok(_)) if settled => {}
            Some(Ok(encoded)) => {
                if let Some(cut) = &encoded.cut {
                    observer.warned(cut);
                }
                match encoded.result {
                    Ok(target) => {
                        let length = settings.prompt_transition;
                        self.watch.turns(encoded.prompts, length);
                        morph.turn(target, length, time, interpolation);
                    }
                    Err(error) => observer.change_refused(&match &self.wanted {
                        Some((wanted, Some(cue))) if *wanted == encoded.prompts => {
                            of_cue(error, cue)
                        }
                        _ => error,
                    }),
                }
            }
            Some(Err(error)) => observer.change_refused(&error),
            None => {}
        }
        if let Some(conditioning) = morph.at(time, interpolation) {
            stream.set_conditioning(conditioning);
        }
        if !morph.is_turning() {
            self.watch.turned();
        }
    }
}

/// An error about a prompt, told of the cue that brought it.
fn of_cue(error: Error, cue: &Cue) -> Error {
    match error {
        Error::Setting {
            property: "prompt",
            what,
        } => Error::setting("prompt", format!("{cue}: {what}")),
        other => other,
    }
}
