//! Checkpoints as `torch.save` writes them.

use crate::sink::Sink;
use std::io::{self, Seek, Write};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Folder of all entries. PyTorch takes any.
const FOLDER: &str = "archive";

/// PyTorch maps a file's numbers into memory where they stand.
const ALIGNMENT: u16 = 64;

/// Values that are turned into bytes at a time.
const CHUNK: usize = 1 << 14;

/// Which of AdamW's two running means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// That of the gradients, `exp_avg`.
    First,
    /// That of their squares, `exp_avg_sq`.
    Second,
}

/// What [`write_optimizer`] writes besides the values of the means.
#[derive(Clone, Debug)]
pub struct OptimizerEntries<'a> {
    /// Shape of each parameter.
    pub shapes: &'a [Vec<usize>],
    /// Steps taken with each.
    pub steps: &'a [u64],
    /// Learning rate.
    pub lr: f64,
    /// Decay of the two means.
    pub betas: (f64, f64),
    /// What is added to the denominator.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// Writes the file that `torch.save(model.state_dict(), ...)` writes: float32 tensors by name. `values` is called once
/// for each index of `entries`, in order, and gives the tensor's values in C order.
///
/// # Errors
/// What writing says; as many values as the shape does not have.
pub fn write_state_dict<V: AsRef<[f32]>>(
    out: impl Write + Seek,
    entries: &[(String, Vec<usize>)],
    mut values: impl FnMut(usize) -> V,
) -> io::Result<()> {
    let mut pickle = Pickler::new();
    pickle.global("collections", "OrderedDict");
    pickle.raw(b")R(");
    for (name, shape) in entries {
        pickle.text(name)?;
        pickle.tensor(shape)?;
    }
    pickle.raw(b"u.");
    let mut archive = Archive::new(out, &pickle.bytes)?;
    for (index, (_, shape)) in entries.iter().enumerate() {
        archive.tensor(shape, values(index).as_ref())?;
    }
    archive.finish()
}

/// Writes the file that `torch.save(optimizer.state_dict(), ...)` writes for an AdamW over all parameters in one group.
/// `values` is called for each parameter's index, in order, for the first and then for the second moment.
///
/// # Errors
/// As [`write_state_dict`].
pub fn write_optimizer<V: AsRef<[f32]>>(
    out: impl Write + Seek,
    entries: &OptimizerEntries,
    mut values: impl FnMut(usize, Moment) -> V,
) -> io::Result<()> {
    if entries.shapes.len() != entries.steps.len() {
        return Err(io::Error::other("an optimizer's steps are not as many as its parameters"));
    }
    let mut archive = Archive::new(out, &pickle_optimizer(entries)?)?;
    for (index, (shape, &step)) in entries.shapes.iter().zip(entries.steps).enumerate() {
        archive.tensor(&[], &[step as f32])?;
        archive.tensor(shape, values(index, Moment::First).as_ref())?;
        archive.tensor(shape, values(index, Moment::Second).as_ref())?;
    }
    archive.finish()
}

fn pickle_optimizer(entries: &OptimizerEntries) -> io::Result<Vec<u8>> {
    let mut pickle = Pickler::new();
    pickle.raw(b"}(");
    pickle.text("state")?;
    pickle.raw(b"}(");
    for (index, shape) in entries.shapes.iter().enumerate() {
        pickle.int(index)?;
        pickle.raw(b"}(");
        pickle.text("step")?;
        pickle.tensor(&[])?;
        pickle.text("exp_avg")?;
        pickle.tensor(shape)?;
        pickle.text("exp_avg_sq")?;
        pickle.tensor(shape)?;
        pickle.raw(b"u");
    }
    pickle.raw(b"u");
    pickle.text("param_groups")?;
    pickle.raw(b"](}(");
    pickle.group(entries)?;
    pickle.raw(b"ueu.");
    Ok(pickle.bytes)
}

/// A pickle of protocol 2 in the making. It repeats what it could refer to, which costs some hundred bytes per tensor.
struct Pickler {
    bytes: Vec<u8>,
    storages: usize,
}

impl Pickler {
    fn new() -> Self {
        Self { bytes: vec![0x80, 2], storages: 0 }
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.raw(format!("c{module}\n{name}\n").as_bytes());
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        self.raw(b"X");
        self.raw(&length.to_le_bytes());
        self.raw(text.as_bytes());
        Ok(())
    }

    fn int(&mut self, value: usize) -> io::Result<()> {
        if let Ok(value) = i32::try_from(value) {
            self.raw(b"J");
            self.raw(&value.to_le_bytes());
        } else {
            self.raw(&[0x8a, 8]);
            self.raw(&i64::try_from(value).map_err(io::Error::other)?.to_le_bytes());
        }
        Ok(())
    }

    fn float(&mut self, value: f64) {
        self.raw(b"G");
        self.raw(&value.to_be_bytes());
    }

    /// The next storage, as a float32 tensor in C order.
    fn tensor(&mut self, shape: &[usize]) -> io::Result<()> {
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.raw(b"((");
        self.text("storage")?;
        self.global("torch", "FloatStorage");
        self.text(&self.storages.to_string())?;
        self.text("cpu")?;
        self.int(shape.iter().product())?;
        self.raw(b"tQ");
        self.int(0)?;
        self.tuple(shape)?;
        let strides = shape.iter().rev().scan(1, |stride, &length| {
            let this = *stride;
            *stride *= length.max(1);
            Some(this)
        });
        let mut strides: Vec<usize> = strides.collect();
        strides.reverse();
        self.tuple(&strides)?;
        // No gradient wanted, and no hooks.
        self.raw(&[0x89]);
        self.global("collections", "OrderedDict");
        self.raw(b")RtR");
        self.storages += 1;
        Ok(())
    }

    fn tuple(&mut self, values: &[usize]) -> io::Result<()> {
        self.raw(b"(");
        values.iter().try_for_each(|&value| self.int(value))?;
        self.raw(b"t");
        Ok(())
    }

    fn group(&mut self, entries: &OptimizerEntries) -> io::Result<()> {
        self.text("lr")?;
        self.float(entries.lr);
        self.text("betas")?;
        self.float(entries.betas.0);
        self.float(entries.betas.1);
        self.raw(&[0x86]);
        self.text("eps")?;
        self.float(entries.eps);
        self.text("weight_decay")?;
        self.float(entries.weight_decay);
        for switch in ["amsgrad", "maximize", "capturable", "differentiable"] {
            self.text(switch)?;
            self.raw(&[0x89]);
        }
        for automatic in ["foreach", "fused"] {
            self.text(automatic)?;
            self.raw(b"N");
        }
        self.text("decoupled_weight_decay")?;
        self.raw(&[0x88]);
        self.text("params")?;
        self.raw(b"](");
        (0..entries.shapes.len()).try_for_each(|index| self.int(index))?;
        self.raw(b"e");
        Ok(())
    }
}

/// The archive around a pickle.
struct Archive<W: Write + Seek> {
    zip: ZipWriter<Sink<W>>,
    storages: usize,
}

impl<W: Write + Seek> Archive<W> {
    /// Begins with what comes before the numbers. PyTorch's `.format_version` is left out: it would promise that
    /// positions can be computed from sizes, which holds for its own padding only.
    fn new(out: W, pickle: &[u8]) -> io::Result<Self> {
        let mut archive = Self { zip: ZipWriter::new(Sink::new(out)), storages: 0 };
        archive.entry("data.pkl", pickle.len())?.write_all(pickle)?;
        archive.entry("byteorder", 6)?.write_all(b"little")?;
        Ok(archive)
    }

    fn entry(&mut self, name: &str, bytes: usize) -> io::Result<&mut ZipWriter<Sink<W>>> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT)
            .large_file(bytes as u64 >= u32::MAX.into());
        self.zip.start_file(format!("{FOLDER}/{name}"), options)?;
        Ok(&mut self.zip)
    }

    fn tensor(&mut self, shape: &[usize], values: &[f32]) -> io::Result<()> {
        if values.len() != shape.iter().product::<usize>() {
            return Err(io::Error::other(format!("{} values for a tensor of shape {shape:?}", values.len())));
        }
        let name = format!("data/{}", self.storages);
        self.storages += 1;
        let entry = self.entry(&name, size_of_val(values))?;
        let mut bytes = Vec::with_capacity(CHUNK * size_of::<f32>());
        for chunk in values.chunks(CHUNK) {
            bytes.clear();
            bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
            entry.write_all(&bytes)?;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.entry("version", 2)?.write_all(b"3\n")?;
        self.zip.finish().map(drop).map_err(Into::into)
    }
}
