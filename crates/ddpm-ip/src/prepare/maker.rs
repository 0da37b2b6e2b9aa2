//! From a source's images, in order, to the output: decoded side by side, written in order.

use super::Job;
use super::fit::Form;
use super::output::{Made, Output};
use crate::Error;
use crate::data::{Pixels, folder};
use crate::event::{Emit, Event};
use crate::ranks::Ranks;
use ddpm_formats::archive::Flow;
use rayon::prelude::*;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Images that are made side by side, and are then there to stay.
const CHUNK: usize = 64;

/// The same for each of several processes, which hold them until all are made.
const SHARED_CHUNK: usize = 16;

/// A chunk ends early when it holds so many bytes, in one process.
const MOST_HELD_BYTES: usize = 1 << 26;

/// An image as a source has it.
pub(super) enum Body {
    Pixels(Pixels),
    /// A file of an image, and where it is, for messages.
    Encoded {
        bytes: Vec<u8>,
        place: String,
    },
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Self::Pixels(pixels) => pixels.data.len(),
            Self::Encoded { bytes, .. } => bytes.len(),
        }
    }

    fn decode(self, rotate: bool) -> Result<Pixels, String> {
        match self {
            Self::Pixels(pixels) => Ok(pixels),
            Self::Encoded { bytes, .. } => folder::decode_bytes(&bytes, rotate),
        }
    }
}

struct Waiting {
    name: String,
    label: Option<u32>,
    body: Body,
}

/// Takes images from a source.
pub(super) struct Maker<'a, 'e> {
    pub(super) source: &'a Path,
    pub(super) form: Form,
    pub(super) output: Output,
    /// Whether images are turned as their EXIF data says.
    pub(super) exif_rotate: bool,
    /// Images in all, where that is known.
    pub(super) total: Option<usize>,
    pub(super) stop: &'a AtomicBool,
    pub(super) emit: &'a mut Emit<'e>,
    /// Who makes the images in turn, a chunk each.
    ranks: Ranks,
    waiting: Vec<Waiting>,
    held_bytes: usize,
    seen: usize,
    stopped: bool,
    /// Whether an image could not be used.
    failed: bool,
}

impl<'a, 'e> Maker<'a, 'e> {
    pub(super) fn new(
        job: &'a Job,
        form: Form,
        output: Output,
        total: Option<usize>,
        ranks: Ranks,
        stop: &'a AtomicBool,
        emit: &'a mut Emit<'e>,
    ) -> Self {
        emit(Event::Prepared { done: 0, total });
        let waiting = Vec::new();
        Self {
            source: &job.source,
            form,
            output,
            exif_rotate: job.exif_rotate,
            total,
            stop,
            emit,
            ranks,
            waiting,
            held_bytes: 0,
            seen: 0,
            stopped: false,
            failed: false,
        }
    }

    /// Takes the next image of the source, which is loaded if it is not there yet. Breaks when it is time to stop.
    ///
    /// # Errors
    /// What `load` says, and images that cannot be used; those before them are kept.
    pub(super) fn offer(
        &mut self,
        name: String,
        label: Option<u32>,
        load: impl FnOnce() -> Result<Body, Error>,
    ) -> Flow<Error> {
        let (index, count) = (self.seen, self.ranks.count());
        let chunk = if count == 1 { CHUNK } else { SHARED_CHUNK };
        if index / chunk % count == self.ranks.rank() && self.output.wants(index, &name) {
            match load() {
                Ok(body) => {
                    self.held_bytes += body.len() + self.form.len();
                    self.waiting.push(Waiting { name, label, body });
                }
                Err(error) => {
                    self.flush(true)?;
                    return Err(error);
                }
            }
        }
        self.seen += 1;
        if self.seen.is_multiple_of(chunk * count) || (count == 1 && self.held_bytes >= MOST_HELD_BYTES) {
            self.flush(false)?;
        }
        Ok(if self.stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Makes the images that wait; `failed` if this process has no more, as the next one cannot be used.
    fn flush(&mut self, failed: bool) -> Result<(), Error> {
        let (form, rotate) = (self.form, self.exif_rotate);
        let make = |Waiting { name, label, body }: Waiting| {
            let place = if let Body::Encoded { place, .. } = &body { place.clone() } else { name.clone() };
            match body.decode(rotate).and_then(|image| form.make(image)) {
                Ok(data) => Ok(Made { name, label, data }),
                Err(reason) => Err(format!("{place}: {reason}")),
            }
        };
        let made: Vec<Result<Made, String>> = std::mem::take(&mut self.waiting).into_par_iter().map(make).collect();
        self.held_bytes = 0;
        let (mut good, mut bad) = (Vec::with_capacity(made.len()), None);
        for image in made {
            match image {
                Ok(image) => good.push(image),
                Err(reason) => {
                    bad = Some(Error::file(self.source, reason));
                    break;
                }
            }
        }
        let failed = failed || bad.is_some();
        let good = self.of_all(good, failed)?;
        if !good.is_empty() {
            self.output.put(&good)?;
        }
        if failed || self.failed {
            self.output.fail()?;
        }
        if let Some(error) = bad {
            return Err(error);
        }
        if self.failed && !failed {
            // Whose image it was says why.
            self.ranks.gather(&[])?;
        }
        (self.emit)(Event::Prepared { done: self.seen, total: self.total });
        if self.ranks.count() == 1 {
            self.stopped = self.stop.load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// The images that all processes made, in order, up to the first that cannot be used: for rank 0.
    fn of_all(&mut self, good: Vec<Made>, failed: bool) -> Result<Vec<Made>, Error> {
        if self.ranks.count() == 1 {
            self.failed = failed;
            return Ok(good);
        }
        let stops = self.stop.load(Ordering::Relaxed);
        let what: Vec<(&str, Option<u32>)> = good.iter().map(|made| (&*made.name, made.label)).collect();
        let mut mine = serde_json::to_vec(&(stops, failed, what)).expect("texts");
        mine.push(b'\n');
        for made in &good {
            mine.extend_from_slice(&made.data);
        }
        let said = self.ranks.gather(&mine)?;
        let mut all = Vec::new();
        for (rank, said) in said.iter().enumerate() {
            let broken = || self.ranks.failure(rank, "sent no images");
            let (head, data) = said.split_at(said.iter().position(|&byte| byte == b'\n').ok_or_else(broken)?);
            let (stops, failed, what): (bool, bool, Vec<(String, Option<u32>)>) =
                serde_json::from_slice(head).map_err(|_| broken())?;
            self.stopped |= stops;
            if self.ranks.leads() && !self.failed {
                let data = data[1..].chunks_exact(self.form.len());
                all.extend(what.into_iter().zip(data).map(|((name, label), data)| Made {
                    name,
                    label,
                    data: data.into(),
                }));
            }
            self.failed |= failed;
        }
        Ok(all)
    }

    /// The source has no more, or `failed` to give them. Says how many images it had, or nothing if the work ended before.
    ///
    /// # Errors
    /// As [`Self::offer`].
    pub(super) fn end(mut self, failed: bool) -> Result<Option<(usize, Output)>, Error> {
        if self.stopped || self.failed {
            return Ok(None);
        }
        self.flush(failed)?;
        Ok(Some((self.seen, self.output)))
    }
}
