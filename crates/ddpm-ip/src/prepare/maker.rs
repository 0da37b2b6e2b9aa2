//! From a source's images, in order, to the output: decoded side by side, written in order.

use super::fit::Form;
use super::output::{Made, Output};
use crate::Error;
use crate::data::{Pixels, folder};
use crate::event::{Emit, Event};
use ddpm_formats::archive::Flow;
use rayon::prelude::*;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Images that are made side by side, and are then there to stay.
const CHUNK: usize = 64;

/// A chunk ends early when it holds so many bytes.
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
    waiting: Vec<Waiting>,
    held_bytes: usize,
    seen: usize,
    stopped: bool,
}

impl<'a, 'e> Maker<'a, 'e> {
    pub(super) fn new(
        source: &'a Path,
        form: Form,
        output: Output,
        exif_rotate: bool,
        total: Option<usize>,
        stop: &'a AtomicBool,
        emit: &'a mut Emit<'e>,
    ) -> Self {
        emit(Event::Prepared { done: 0, total });
        let waiting = Vec::new();
        Self { source, form, output, exif_rotate, total, stop, emit, waiting, held_bytes: 0, seen: 0, stopped: false }
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
        let index = self.seen;
        if self.output.wants(index, &name) {
            match load() {
                Ok(body) => {
                    self.held_bytes += body.len() + self.form.len();
                    self.waiting.push(Waiting { name, label, body });
                }
                Err(error) => {
                    self.flush()?;
                    return Err(error);
                }
            }
        }
        self.seen += 1;
        if self.seen.is_multiple_of(CHUNK) || self.held_bytes >= MOST_HELD_BYTES {
            self.flush()?;
            self.stopped = self.stop.load(Ordering::Relaxed);
        }
        Ok(if self.stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    /// Makes the images that wait.
    fn flush(&mut self) -> Result<(), Error> {
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
        if !good.is_empty() {
            self.output.put(&good)?;
        }
        if let Some(error) = bad {
            return Err(error);
        }
        (self.emit)(Event::Prepared { done: self.seen, total: self.total });
        Ok(())
    }

    /// The source has no more. Says how many images it had, or nothing if the work was stopped before its end.
    ///
    /// # Errors
    /// As [`Self::offer`].
    pub(super) fn end(mut self) -> Result<Option<(usize, Output)>, Error> {
        if self.stopped {
            return Ok(None);
        }
        self.flush()?;
        Ok(Some((self.seen, self.output)))
    }
}
