//! Features of image sets: computed once, and kept by the images' content.

use super::Settings;
use super::network::{FeatureNetwork, Rows};
use super::pixels::{PixelStatistics, PixelSums};
use super::statistics::Statistics;
use crate::data::ImageSet;
use crate::event::{Emit, Event};
use crate::file::{create_folder, sync_folder, write_atomic};
use crate::partial::Partial;
use crate::ranks::Ranks;
use crate::{Error, weights};
use fidelity::{FidelityError, Gaussian, Moments};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows that are read at a time; moments do not depend on how features were computed.
const ROWS: usize = 512;

/// Bytes of images that are hashed at a time, or one image if it has more.
const HASHED_BYTES: usize = 16 << 20;

/// Features in a file: a line that says what they are, then the rows as float32.
pub(super) struct FeatureFile {
    path: PathBuf,
    start: u64,
    rows: usize,
    width: usize,
    /// Where the file is if nothing is to be kept.
    _temporary: Option<tempfile::TempDir>,
}

impl FeatureFile {
    /// Passes the rows on, some at a time.
    pub(super) fn rows(&self, mut take: impl FnMut(&[f32]) -> Result<(), Error>) -> Result<(), Error> {
        let mut file = BufReader::new(File::open(&self.path).map_err(Error::io("read", &self.path))?);
        file.seek(SeekFrom::Start(self.start)).map_err(Error::io("read", &self.path))?;
        let mut left = self.rows;
        let mut bytes = vec![0; ROWS.min(self.rows) * self.width * 4];
        while left > 0 {
            let part = &mut bytes[..ROWS.min(left) * self.width * 4];
            file.read_exact(part).map_err(Error::io("read", &self.path))?;
            take(&floats(part))?;
            left -= ROWS.min(left);
        }
        Ok(())
    }

    /// All rows `[n, width]`.
    pub(super) fn all(&self) -> Result<Vec<f32>, Error> {
        let mut all = Vec::with_capacity(self.rows * self.width);
        self.rows(|rows| {
            all.extend_from_slice(rows);
            Ok(())
        })?;
        Ok(all)
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// What a set of images gives.
pub(super) struct Measured {
    pub(super) statistics: Statistics,
    pub(super) features: FeatureFile,
}

/// What going through a set of images once tells.
pub(super) struct Content {
    /// SHA-256 of the images and their sizes.
    pub(super) hash: String,
    pub(super) pixels: PixelStatistics,
}

/// Goes through the images of a set; none if `stop` was set.
///
/// # Errors
/// Images that cannot be read; one image again and again, which has no distribution.
pub(super) fn content(set: &ImageSet, stop: &AtomicBool) -> Result<Option<Content>, Error> {
    let [h, w, c] = set.image_shape();
    let mut hasher = Sha256::new();
    hasher.update(format!("images {h} {w} {c}\n"));
    let mut pixels = PixelSums::new(h * w * c);
    let (mut first, mut differ) = (Vec::new(), false);
    set.batches(0, (HASHED_BYTES / (h * w * c)).max(1), &mut |images| {
        hasher.update(images);
        pixels.add(images);
        if first.is_empty() {
            first = images[..h * w * c].to_vec();
        }
        differ = differ || images.chunks_exact(h * w * c).any(|image| image != first);
        Ok(!stop.load(Ordering::Relaxed))
    })?;
    if stop.load(Ordering::Relaxed) {
        return Ok(None);
    }
    if !differ {
        let message = format!("all its {} images are the same: there is no distribution to compare", set.len());
        return Err(Error::file(Path::new(set.name()), message));
    }
    Ok(Some(Content { hash: weights::hex(&hasher.finalize()), pixels: pixels.finish() }))
}

/// Statistics and features of a set whose [`content`] has that hash, from the folder of the cache if they are there, and kept
/// there if one is given. An interrupted call gives nothing; the same call goes on from where it stopped if there is a cache.
///
/// # Errors
/// Images that cannot be read, features that are not finite, failing writes. Nothing wrong is kept.
pub(super) fn measure(
    set: &ImageSet,
    hash: &str,
    network: &FeatureNetwork,
    settings: &Settings,
    ranks: &Ranks,
    stop: &AtomicBool,
    emit: &mut Emit,
) -> Result<Option<Measured>, Error> {
    let cache = settings.cache.as_deref();
    let temporary = if cache.is_some() {
        None
    } else {
        Some(tempfile::tempdir().map_err(Error::io("write into", &std::env::temp_dir()))?)
    };
    let folder = match (cache, &temporary) {
        (Some(cache), _) => cache.join("features").join(network.name()),
        (None, Some(temporary)) => temporary.path().to_path_buf(),
        (None, None) => unreachable!("one of them is there"),
    };
    create_folder(&folder)?;
    let (features_path, statistics_path) =
        (folder.join(format!("{hash}.features")), folder.join(format!("{hash}.npz")));
    let identity = format!("ddpm-ip features of {} by {}, {} x {}", hash, network.name(), set.len(), network.width());
    let file = |temporary| FeatureFile {
        path: features_path.clone(),
        start: identity.len() as u64 + 1,
        rows: set.len(),
        width: network.width(),
        _temporary: temporary,
    };
    if let Some(statistics) = kept(&features_path, &statistics_path, &identity, set.len() * network.width()) {
        emit(Event::Measuring { what: set.name().into(), done: set.len(), total: set.len() });
        nothing_to_share(set, ranks)?;
        return Ok(Some(Measured { statistics, features: file(temporary) }));
    }

    let row = network.width() + network.spatial_width();
    let device = network.device();
    let (mut partial, done) = Partial::open(&folder.join(hash), &identity, 4 * row, false, device, emit)?;
    // Another call may have finished them while this one looked.
    if let Some(statistics) = kept(&features_path, &statistics_path, &identity, set.len() * network.width()) {
        nothing_to_share(set, ranks)?;
        return Ok(Some(Measured { statistics, features: file(temporary) }));
    }
    let done = done.min(set.len());
    let progress = |done: usize| Event::Measuring { what: set.name().into(), done, total: set.len() };
    emit(Event::Begins(format!("making features of {} images of {} by {}", set.len(), set.name(), network.name())));
    emit(progress(done));
    let (done, bad) = share(set, network, settings.batch_size, done, ranks, stop, |rows, done| {
        partial.append(rows)?;
        emit(progress(done));
        Ok(())
    })?;
    if let Some(image) = bad {
        partial.remove()?;
        let message =
            format!("image {image} has features that are not finite: check the weights of {}", network.name());
        return Err(Error::file(Path::new(set.name()), message));
    }
    if done < set.len() {
        return Ok(None);
    }
    let statistics = finish(&mut partial, set.len(), network, &features_path, &identity)?;
    statistics.write(&statistics_path)?;
    partial.remove()?;
    sync_folder(&folder);
    Ok(Some(Measured { statistics, features: file(temporary) }))
}

/// Tells all ranks that the features of a set are there.
fn nothing_to_share(set: &ImageSet, ranks: &Ranks) -> Result<(), Error> {
    ranks.told(&(set.len() as u64).to_le_bytes()).map(|_| ())
}

/// Features of the images from number `done` of rank 0 on, whose batches all ranks take in turn; passes the bytes of the rows of
/// each batch on, in order, with how many are done then. How many are done in the end, and the first image whose features are not
/// finite.
///
/// # Errors
/// Images that cannot be read, what `take` says, and processes that are gone.
pub(super) fn share(
    set: &ImageSet,
    network: &FeatureNetwork,
    batch: usize,
    done: usize,
    ranks: &Ranks,
    stop: &AtomicBool,
    mut take: impl FnMut(&[u8], usize) -> Result<(), Error>,
) -> Result<(usize, Option<usize>), Error> {
    let told = ranks.told(&(done as u64).to_le_bytes())?;
    let mut done = u64::from_le_bytes(told.try_into().unwrap_or_default()) as usize;
    let row = 4 * (network.width() + network.spatial_width());
    let [height, width, channels] = set.image_shape();
    let (mut turn, mut read, mut mine, mut bad) = (0, done, Made::default(), None);
    if done >= set.len() {
        return Ok((done, None));
    }
    set.batches(done, batch, &mut |images| {
        let n = images.len() / (height * width * channels);
        if turn == ranks.rank() {
            mine = Made::new(&network.features(images, [n, height, width, channels])?, network);
        }
        (turn, read) = (turn + 1, read + n);
        if turn < ranks.count() && read < set.len() {
            return Ok(true);
        }
        turn = 0;
        let made = std::mem::take(&mut mine);
        let said =
            ranks.gather(&[&serde_json::to_vec(&made.bad).expect("a number"), &b"\n"[..], &made.rows].concat())?;
        for said in &said {
            let (first_bad, rows) = said.split_at(said.iter().position(|&byte| byte == b'\n').unwrap_or(0));
            if let Some(i) = serde_json::from_slice::<Option<usize>>(first_bad).ok().flatten() {
                bad = Some(done + i);
                return Ok(false);
            }
            let rows = rows.get(1..).unwrap_or_default();
            if !rows.is_empty() {
                done += rows.len() / row;
                take(rows, done)?;
            }
        }
        // Whoever stops, all do.
        let go_on = ranks.gather(&[u8::from(!stop.load(Ordering::Relaxed))])?;
        Ok(go_on.iter().all(|said| said == &[1]))
    })?;
    Ok((done, bad))
}

/// The rows of a batch.
#[derive(Default)]
struct Made {
    /// Of each image its features, then its spatial ones.
    rows: Vec<u8>,
    /// The first image with a value that is not finite; then there are no rows.
    bad: Option<usize>,
}

impl Made {
    fn new(made: &Rows, network: &FeatureNetwork) -> Self {
        let both = [(&made.features, network.width()), (&made.spatial, network.spatial_width())];
        let bad = both.iter().find_map(|(values, width)| first_bad(values, *width));
        if bad.is_some() {
            return Self { rows: Vec::new(), bad };
        }
        let count = made.features.len() / network.width();
        let mut rows = Vec::with_capacity(4 * (made.features.len() + made.spatial.len()));
        for i in 0..count {
            for (values, width) in both {
                rows.extend(values[i * width..(i + 1) * width].iter().flat_map(|v| v.to_le_bytes()));
            }
        }
        Self { rows, bad }
    }
}

/// The first row with a value that is not finite.
fn first_bad(values: &[f32], width: usize) -> Option<usize> {
    values.iter().position(|v| !v.is_finite()).map(|at| at / width)
}

/// What is kept of an earlier call, if it is whole.
fn kept(features: &Path, statistics: &Path, identity: &str, values: usize) -> Option<Statistics> {
    let mut file = File::open(features).ok()?;
    let mut line = vec![0; identity.len() + 1];
    file.read_exact(&mut line).ok()?;
    let whole = line.strip_suffix(b"\n") == Some(identity.as_bytes())
        && file.metadata().ok()?.len() == (line.len() + 4 * values) as u64;
    if whole { Statistics::read(statistics).ok().flatten() } else { None }
}

/// Writes the features of finished rows, and sums up both kinds.
fn finish(
    partial: &mut Partial,
    count: usize,
    network: &FeatureNetwork,
    path: &Path,
    identity: &str,
) -> Result<Statistics, Error> {
    let (width, spatial_width) = (network.width(), network.spatial_width());
    let [mut features, mut spatial] = [width, spatial_width].map(Sum::new);
    write_atomic(path, |w| {
        w.write_all(identity.as_bytes())?;
        w.write_all(b"\n")?;
        partial.read(count, |bytes| {
            for row in bytes.chunks_exact(4 * (width + spatial_width)) {
                let (of_features, of_space) = row.split_at(4 * width);
                w.write_all(of_features)?;
                let sums = features.add(&floats(of_features)).and_then(|()| spatial.add(&floats(of_space)));
                sums.map_err(std::io::Error::other)?;
            }
            Ok(())
        })
    })?;
    let of = |e: FidelityError| Error::file(path, e.to_string());
    Ok(Statistics {
        network: network.name().into(),
        images: Some(count),
        features: features.finish().map_err(of)?,
        spatial: if spatial_width > 0 { Some(spatial.finish().map_err(of)?) } else { None },
    })
}

/// Moments of rows that come in any batches: as many are added at a time, so that sums are always rounded the same way.
pub(crate) struct Sum {
    moments: Moments,
    waiting: Vec<f32>,
}

impl Sum {
    pub(crate) fn new(width: usize) -> Self {
        Self { moments: Moments::new(width), waiting: Vec::new() }
    }

    pub(crate) fn add(&mut self, rows: &[f32]) -> Result<(), FidelityError> {
        for row in rows.chunks_exact(self.moments.width().max(1)) {
            self.waiting.extend_from_slice(row);
            if self.waiting.len() == ROWS * self.moments.width() {
                self.push()?;
            }
        }
        Ok(())
    }

    fn push(&mut self) -> Result<(), FidelityError> {
        let width = self.moments.width();
        let rows = self.waiting.len().checked_div(width).unwrap_or(0);
        self.moments.push(&self.waiting, [rows, width])?;
        self.waiting.clear();
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Gaussian, FidelityError> {
        self.push()?;
        self.moments.gaussian()
    }
}
