//! Features made by a network from an ONNX file.

mod cubic;

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rten::{DataType, Dimension, Model, ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueType, ValueView};
use rten_onnx::onnx::ModelProto;

use crate::FidelityError;

/// Values of the images that are run at once, at most, where the model fixes their number and size: a gigabyte.
const MOST_VALUES: usize = 1 << 28;

/// An image encoder: images in, one row of features for each out.
///
/// It computes on as many threads as Rayon had where it was loaded. Features of an image depend on the batch around it
/// by rounding alone, unless the network itself mixes the images of a batch.
#[derive(Debug)]
pub struct Onnx {
    path: PathBuf,
    beside: Vec<PathBuf>,
    model: Model,
    input: NodeId,
    output: NodeId,
    /// Whether the output is `[N, T, d]`, the tokens of a transformer.
    tokens: bool,
    /// The number of images that the network takes, if it takes no other.
    batch: Option<usize>,
    channels: usize,
    size: usize,
    width: usize,
    options: RunOptions,
}

impl Onnx {
    /// Reads a model and runs it once, on black images: one that loads also runs.
    ///
    /// Images go into its one input of shape `[N, C, H, W]` with `C` 1 or 3; a `C` left open is 3. `H = W` is `size`
    /// where the model leaves it open. Further inputs do no harm if the output does without them, as in a CLIP that
    /// embeds images and texts.
    ///
    /// Features are the output of the name `output`, or the first output `[N, d]`, or else the first `[N, T, d]`. Of
    /// tokens `[N, T, d]` the first is taken, the class token of ViT, CLIP and DINOv2.
    ///
    /// Weights may lie in other files of the model's folder, whose names end in `.data`, `.onnx_data` or the like.
    /// Reading takes a few times the memory of the files. But a model is a program: a hostile one sees no more than those
    /// files and the images, yet may take any time and memory.
    ///
    /// # Errors
    /// When a file cannot be read, is damaged or has an operation that is not supported, when input, size or output
    /// cannot be told or do not fit, and when the run fails.
    pub fn load(path: &Path, size: Option<usize>, output: Option<&str>) -> Result<Self, FidelityError> {
        // Of models that make no sense the runtime promises memory safety alone, and its history has panics.
        catch_unwind(|| Self::open(path, size, output)).unwrap_or_else(|_| {
            let problem = "not an ONNX model that can be run: the runtime panicked".into();
            Err(FidelityError::Network { path: path.to_owned(), problem })
        })
    }

    fn open(path: &Path, size: Option<usize>, output: Option<&str>) -> Result<Self, FidelityError> {
        let fail = |problem| FidelityError::Network { path: path.to_owned(), problem };
        let file = File::read(path).map_err(fail)?;
        let model = self::model(&file.options, file.bytes, true).map_err(fail)?;
        let (input, shape) = image_input(&model).map_err(fail)?;
        let [batch, channels, height, width] = shape.each_ref().map(fixed);
        let size = side([height, width], size).map_err(fail)?;
        let (features, tokens) = features_output(&model, output).map_err(fail)?;
        let pool = ThreadPool::with_num_threads(rayon::current_num_threads());
        let mut onnx = Self {
            path: path.to_owned(),
            beside: file.beside,
            model,
            input,
            output: features,
            tokens,
            batch,
            channels: channels.unwrap_or(3),
            size,
            width: 0,
            options: RunOptions::default().with_thread_pool(Some(Arc::new(pool))),
        };
        let n = batch.unwrap_or(1);
        let shape = [n, onnx.channels, size, size];
        let values = shape.into_iter().try_fold(1, usize::checked_mul).filter(|n| (1..=MOST_VALUES).contains(n));
        let black = vec![0.0; values.ok_or_else(|| onnx.fail(format!("images {shape:?} cannot be made")))?];
        if let Some(mut proto) = file.cubic {
            let written = |proto: &ModelProto| proto.write_buf().map_err(|error| fail(error.to_string()));
            let plain = self::model(&file.options, written(&proto)?, false).map_err(fail)?;
            let (input, _) = image_input(&plain).map_err(fail)?;
            let view = ValueView::from_shape(shape, &black).map_err(|error| onnx.fail(error))?;
            cubic::replace(&mut proto, &plain, input, view, &onnx.options).map_err(fail)?;
            onnx.model = self::model(&file.options, written(&proto)?, true).map_err(fail)?;
            (onnx.input, _) = image_input(&onnx.model).map_err(fail)?;
            (onnx.output, _) = features_output(&onnx.model, output).map_err(fail)?;
        }
        onnx.width = onnx.run(&black, n)?.len() / n;
        if onnx.width == 0 { Err(onnx.fail("its features have no columns")) } else { Ok(onnx) }
    }

    /// The files beside the model's that hold its weights.
    pub fn files_beside(&self) -> &[PathBuf] {
        &self.beside
    }

    /// Channels of an image, 1 or 3.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Height and width of an image.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of columns `d` of the features.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Features `[n, d]` of images `[n, C, H, W]` that are normalised as the network wants them.
    ///
    /// They are run all at once, and memory grows with `n`. A network that takes a fixed number of images is run as
    /// often as that needs, black images filling up the last run.
    ///
    /// # Errors
    /// When `images` does not hold `n` images, and when the network fails or makes another shape of features.
    pub fn features(&self, images: &[f32], n: usize) -> Result<Vec<f32>, FidelityError> {
        let values = self.channels * self.size * self.size;
        if n.checked_mul(values) != Some(images.len()) {
            return Err(FidelityError::ShapeMismatch { rows: n, width: values, found: images.len() });
        }
        let Some(batch) = self.batch else {
            return if n == 0 { Ok(Vec::new()) } else { self.run(images, n) };
        };
        let mut features = Vec::with_capacity(n * self.width);
        for images in images.chunks(batch * values) {
            if images.len() == batch * values {
                features.extend(self.run(images, batch)?);
            } else {
                let mut filled = images.to_vec();
                filled.resize(batch * values, 0.0);
                features.extend(self.run(&filled, batch)?);
            }
        }
        features.truncate(n * self.width);
        Ok(features)
    }

    /// Runs the network on images `[n, C, H, W]`, `n > 0`; gives `[n, d]`.
    fn run(&self, images: &[f32], n: usize) -> Result<Vec<f32>, FidelityError> {
        let shape = [n, self.channels, self.size, self.size];
        let view = ValueView::from_shape(shape, images).map_err(|error| self.fail(error))?;
        let inputs = vec![(self.input, view.into())];
        let run = self.model.run_n(inputs, [self.output], Some(self.options.clone()));
        let [value] = run.map_err(|error| self.fail(format!("it fails on images {shape:?}: {error}")))?;
        let ([rows, width], features) = self.rows(value).map_err(|error| self.fail(error))?;
        if rows != n || (self.width != 0 && self.width != width) {
            return Err(self.fail(format!("it gave features of shape [{rows}, {width}] for images {shape:?}")));
        }
        Ok(features)
    }

    /// Shape `[n, d]` and values of an output; of tokens, those of the first.
    fn rows(&self, value: Value) -> Result<([usize; 2], Vec<f32>), String> {
        if !self.tokens {
            return value.into_shape_vec::<f32, 2>().map_err(|error| error.to_string());
        }
        let ([n, tokens, width], values) = value.into_shape_vec::<f32, 3>().map_err(|error| error.to_string())?;
        if values.is_empty() {
            return Err(format!("it gave features of shape [{n}, {tokens}, {width}]"));
        }
        Ok(([n, width], values.chunks(tokens * width).flat_map(|tokens| &tokens[..width]).copied().collect()))
    }

    fn fail(&self, problem: impl ToString) -> FidelityError {
        FidelityError::Network { path: self.path.clone(), problem: problem.to_string() }
    }
}

/// What is read from files, before it is a model.
struct File {
    bytes: Vec<u8>,
    /// Hold the weights of other files.
    options: ModelOptions,
    /// Those files.
    beside: Vec<PathBuf>,
    /// What `bytes` say, if something in there is resized cubically.
    cubic: Option<ModelProto>,
}

impl File {
    fn read(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
        let proto = ModelProto::parse_buf(&bytes).map_err(|error| format!("not an ONNX model: {error}"))?;
        // The parser takes a message for whole that is cut off between two fields. This one comes after the graph.
        if proto.opset_import.is_empty() || proto.opset_import.iter().any(|set| set.version.is_none()) {
            return Err("not a complete ONNX model: it does not say which set of operators (opset) it uses".into());
        }
        let mut options = ModelOptions::with_all_ops();
        let tensors = proto.graph.iter().flat_map(|graph| &graph.initializer);
        let entries = tensors.flat_map(|tensor| &tensor.external_data);
        let mut names: Vec<&str> = entries
            .filter(|entry| entry.key.as_deref() == Some("location"))
            .filter_map(|entry| entry.value.as_deref())
            .collect();
        names.sort_unstable();
        names.dedup();
        let mut read = Vec::new();
        for name in names {
            let beside = path.with_file_name(name);
            // Whatever is no plain name leads out of the folder, and the runtime refuses it.
            if beside.parent() == path.parent() && beside.file_name() == Some(name.as_ref()) {
                options.external_data(name, std::fs::read(&beside).map_err(|error| format!("{name}: {error}"))?);
                read.push(beside);
            }
        }
        let cubic = cubic::is_used(&proto).then_some(proto);
        Ok(Self { bytes, options, beside: read, cubic })
    }
}

fn model(options: &ModelOptions, bytes: Vec<u8>, optimized: bool) -> Result<Model, String> {
    let model = options.clone().enable_optimization(optimized).load(bytes);
    model.map_err(|error| format!("not an ONNX model that can be run: {error}"))
}

/// Height and width of images, from what the model fixes of them and what is asked for.
fn side(fixed: [Option<usize>; 2], asked: Option<usize>) -> Result<usize, String> {
    let mut wanted = fixed.into_iter().flatten().chain(asked);
    let size = wanted.next().ok_or("it takes images of any size: give the size with --feature-size")?;
    if wanted.all(|other| other == size) {
        return Ok(size);
    }
    let [height, width] = fixed.map(|side| side.map_or("any".into(), |side| side.to_string()));
    let asked = asked.map_or("square ones".into(), |size| format!("images of {size}x{size}"));
    Err(format!("it takes images of {height}x{width}, but {asked} are wanted"))
}

/// The input that takes images, and its shape.
fn image_input(model: &Model) -> Result<(NodeId, [Dimension; 4]), String> {
    let image = |&id: &NodeId| {
        let info = model.node_info(id)?;
        let shape = <[Dimension; 4]>::try_from(info.shape()?).ok()?;
        let float = info.dtype() == Some(ValueType::Tensor(DataType::Float));
        (float && fixed(&shape[1]).is_none_or(|channels| channels == 1 || channels == 3)).then_some((id, shape))
    };
    let mut images = model.input_ids().iter().filter_map(image);
    if let (Some(only), None) = (images.next(), images.next()) {
        return Ok(only);
    }
    let inputs = describe(model, model.input_ids());
    Err(format!("one input [N, C, H, W] of floats with 1 or 3 channels is needed, but its inputs are {inputs}"))
}

/// The output that gives features, and whether they are tokens.
fn features_output(model: &Model, name: Option<&str>) -> Result<(NodeId, bool), String> {
    let of_rank = |rank| {
        let fits = |id: &NodeId| {
            let info = model.node_info(*id)?;
            let named = name.is_none() || info.name() == name;
            (named && info.shape()?.len() == rank).then_some((*id, rank == 3))
        };
        model.output_ids().iter().find_map(fits)
    };
    of_rank(2).or_else(|| of_rank(3)).ok_or_else(|| {
        let name = name.map(|name| format!(" named {name}")).unwrap_or_default();
        let outputs = describe(model, model.output_ids());
        format!("an output{name} of shape [N, d] or [N, T, d] is needed, but its outputs are {outputs}")
    })
}

fn fixed(dimension: &Dimension) -> Option<usize> {
    match dimension {
        Dimension::Fixed(size) => Some(*size),
        Dimension::Symbolic(_) => None,
    }
}

/// Names and shapes of inputs or outputs: `pixels [N, 3, 224, 224]`.
fn describe(model: &Model, ids: &[NodeId]) -> String {
    let one = |&id: &NodeId| {
        let info = model.node_info(id)?;
        let name = info.name().unwrap_or("?");
        let Some(shape) = info.shape() else { return Some(format!("{name} of unknown shape")) };
        let sizes: Vec<String> = shape
            .into_iter()
            .map(|dimension| match dimension {
                Dimension::Fixed(size) => size.to_string(),
                Dimension::Symbolic(name) => name,
            })
            .collect();
        Some(format!("{name} [{}]", sizes.join(", ")))
    };
    let all: Vec<String> = ids.iter().filter_map(one).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}
