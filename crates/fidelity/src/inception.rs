//! The Inception network of the Fréchet inception distance.

use ddpm_kernels::{Conv2d, Padding, Pool2d, PoolKind};
use ddpm_net::op::{self, Op};
use ddpm_net::{
    Device, GradientPlace, Graph, Init, Layout, Parameters, Plan, Plans, Precision, Shape, Spec, Value, linear,
};
use std::sync::Arc;

use crate::resize::resize_tf1;

const SIZE: usize = 299;

/// Added to the variances of the batch normalisations.
const EPS: f64 = 1e-3;

/// Channels of the layer that sFID looks at which it takes.
const SPATIAL_CHANNELS: usize = 7;

/// Gives a parameter by its name and shape.
pub type Get<'a, E> = dyn FnMut(&str, &[usize]) -> Result<Vec<f32>, E> + 'a;

/// What one batch of images gives. Row by row it does not depend on the batch.
#[derive(Debug, Clone, PartialEq)]
pub struct InceptionFeatures {
    /// `[N, 2048]`: the means over the last block's 8x8 positions (`pool_3`).
    pub pool: Vec<f32>,
    /// `[N, 2023]`: of the first 1x1 convolution of block Mixed_6d (`mixed_6/conv` in the graph), after ReLU, the first
    /// seven channels of all 17x17 positions, channels last; for sFID (Nash et al. 2021, arXiv 2103.03841).
    pub spatial: Vec<f32>,
}

/// The classifier of the graph of 2015-12-05 (Szegedy et al. 2016, arXiv 1512.00567, with TensorFlow's deviations) that all
/// published FIDs are measured with.
///
/// Average pools leave padding out, and the last block has a maximum pool instead. Batch normalisations are part of the
/// convolutions before them: their factors are multiplied into the weights in f64 and rounded once.
pub struct Inception {
    stem: Vec<Step>,
    blocks: Vec<Vec<Vec<Step>>>,
    layout: Arc<Layout>,
    /// Weight and bias of each convolution.
    parameters: Parameters,
    /// `[1008, 2048]`
    classes: Vec<f32>,
    device: Device,
    /// For each number of images: the plan, its input, the last block and what sFID looks at.
    plans: Plans<usize, (Plan, Value, [Value; 2])>,
}

/// A part of a branch.
enum Step {
    Conv(op::Conv),
    Pool(Pool2d),
    /// Layers side by side, their channels joined.
    Split([op::Conv; 2]),
}

impl Step {
    fn record(&self, graph: &mut Graph, x: Value) -> Value {
        match self {
            Self::Conv(layer) => graph.add(Op::Conv(layer.clone()), &[x]),
            Self::Pool(settings) => graph.add(Op::Pool(*settings), &[x]),
            Self::Split(layers) => {
                let [a, b] = layers.clone().map(|layer| graph.add(Op::Conv(layer), &[x]));
                graph.add(Op::Concat, &[a, b])
            }
        }
    }
}

const AVERAGE: Pool2d = Pool2d { kind: PoolKind::Average, stride: 1, padding: Padding::Same };
const LARGEST: Pool2d = Pool2d { kind: PoolKind::Max, stride: 1, padding: Padding::Same };
const HALVED: Pool2d = Pool2d { kind: PoolKind::Max, stride: 2, padding: Padding::Valid };

/// The block whose first branch sFID looks at: Mixed_6d among those below.
const SPATIAL_BLOCK: usize = 6;

impl Inception {
    /// Columns of [`InceptionFeatures::pool`].
    pub const WIDTH: usize = 2048;
    /// Columns of [`InceptionFeatures::spatial`].
    pub const SPATIAL_WIDTH: usize = SPATIAL_CHANNELS * 17 * 17;
    /// Classes of the logits.
    pub const CLASSES: usize = 1008;
    /// Side of the images that the network sees.
    pub const SIZE: usize = SIZE;

    /// Builds the network from parameters with the names and shapes of the usual PyTorch conversion
    /// (`Mixed_5b.branch1x1.conv.weight`, …): `get` is called with each name and shape.
    ///
    /// # Errors
    /// What `get` says.
    pub fn load<E>(get: &mut Get<'_, E>, device: Device) -> Result<Self, E> {
        let mut b = Builder { get, specs: Vec::new(), parameters: Vec::new() };
        let stem = vec![
            b.conv("Conv2d_1a_3x3", 3, 32, Conv2d { kernel: [3, 3], stride: 2, padding: Padding::Valid })?,
            b.conv("Conv2d_2a_3x3", 32, 32, Conv2d { kernel: [3, 3], stride: 1, padding: Padding::Valid })?,
            b.conv("Conv2d_2b_3x3", 32, 64, Conv2d::same([3, 3], 1))?,
            Step::Pool(HALVED),
            b.conv("Conv2d_3b_1x1", 64, 80, Conv2d::same([1, 1], 1))?,
            b.conv("Conv2d_4a_3x3", 80, 192, Conv2d { kernel: [3, 3], stride: 1, padding: Padding::Valid })?,
            Step::Pool(HALVED),
        ];
        let blocks = vec![
            b.block_a("Mixed_5b", 192, 32)?,
            b.block_a("Mixed_5c", 256, 64)?,
            b.block_a("Mixed_5d", 288, 64)?,
            b.block_b("Mixed_6a", 288)?,
            b.block_c("Mixed_6b", 128)?,
            b.block_c("Mixed_6c", 160)?,
            b.block_c("Mixed_6d", 160)?,
            b.block_c("Mixed_6e", 192)?,
            b.block_d("Mixed_7a")?,
            b.block_e("Mixed_7b", 1280, AVERAGE)?,
            b.block_e("Mixed_7c", 2048, LARGEST)?,
        ];
        let Builder { get, specs, parameters } = b;
        let classes = get("fc.weight", &[Self::CLASSES, Self::WIDTH])?;
        let layout = Arc::new(Layout::new(specs));
        let parameters = Parameters::new(Arc::clone(&layout), parameters);
        Ok(Self { stem, blocks, layout, parameters, classes, device, plans: Plans::default() })
    }

    /// The network for `n` images.
    fn plan(&self, n: usize) -> (Plan, Value, [Value; 2]) {
        let mut graph = Graph::new(Arc::clone(&self.layout));
        let input = graph.input(Shape { n, h: SIZE, w: SIZE, c: 3 }, Precision::F32);
        let mut x = self.stem.iter().fold(input, |x, step| step.record(&mut graph, x));
        let mut spatial = x;
        for (i, block) in self.blocks.iter().enumerate() {
            let branch = |steps: &Vec<Step>| steps.iter().fold(x, |x, step| step.record(&mut graph, x));
            let branches: Vec<Value> = block.iter().map(branch).collect();
            if i == SPATIAL_BLOCK {
                spatial = graph.add(Op::TakeChannels(0, SPATIAL_CHANNELS), &[branches[0]]);
            }
            x = graph.add(Op::Concat, &branches);
        }
        let wanted = [x, spatial];
        (Plan::new(&graph, &wanted, GradientPlace::Outside), input, wanted)
    }

    /// Features of images `[N, H, W, C]` with 3 channels, or with 1 that counts three times, resized as TensorFlow 1 does.
    ///
    /// # Panics
    /// When the number of values is not that of the shape, or of other channels.
    pub fn features(&self, images: &[u8], [n, h, w, c]: [usize; 4]) -> InceptionFeatures {
        self.features_of_resized(resize_tf1(images, [n, h, w, c], SIZE), [n, c])
    }

    /// Features of images `[N, 299, 299, C]` that are resized already, of values from 0 to 255.
    ///
    /// # Panics
    /// As [`Self::features`].
    pub fn features_of_resized(&self, mut values: Vec<f32>, [n, c]: [usize; 2]) -> InceptionFeatures {
        assert!(c == 1 || c == 3, "images with {c} channels");
        assert_eq!(values.len(), n * SIZE * SIZE * c, "values of {n} images of {SIZE}x{SIZE}x{c}");
        if n == 0 {
            return InceptionFeatures { pool: Vec::new(), spatial: Vec::new() };
        }
        if c == 1 {
            values = values.iter().flat_map(|&v| [v; 3]).collect();
        }
        for v in &mut values {
            *v = (*v - 128.0) / 128.0;
        }
        let planned = self.plans.get(n, || self.plan(n));
        let (plan, input, wanted) = &*planned;
        let mut read = self.device.compute(plan, &self.parameters, &[(*input, &values)], wanted).into_iter();
        let [last, spatial] = [(); 2].map(|()| read.next().expect("both were asked for"));
        let channels = Self::WIDTH;
        let positions = last.len() / (n * channels);
        let mut means = Vec::with_capacity(n * channels);
        for image in last.chunks_exact(positions * channels) {
            let mut sums = vec![0.0f64; channels];
            for pixel in image.chunks_exact(channels) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += f64::from(v));
            }
            means.extend(sums.iter().map(|sum| (sum / positions as f64) as f32));
        }
        InceptionFeatures { pool: means, spatial }
    }

    /// Logits `[N, 1008]` of [`InceptionFeatures::pool`], without the bias, which the Inception Score of the reference
    /// evaluator leaves out.
    pub fn logits(&self, pool: &[f32]) -> Vec<f32> {
        let n = pool.len() / Self::WIDTH;
        if n == 0 {
            return Vec::new();
        }
        linear(pool, &self.classes, None, [Self::WIDTH, Self::CLASSES])
    }
}

/// Takes parameters and makes layers of them.
struct Builder<'a, E> {
    get: &'a mut Get<'a, E>,
    specs: Vec<Spec>,
    parameters: Vec<f32>,
}

type Branches = Vec<Vec<Step>>;

impl<E> Builder<'_, E> {
    /// A convolution without bias and its batch normalisation, as one layer.
    fn layer(&mut self, name: &str, from: usize, to: usize, settings: Conv2d) -> Result<op::Conv, E> {
        let [k, l] = settings.kernel;
        let mut weight = (self.get)(&format!("{name}.conv.weight"), &[to, from, k, l])?;
        let mut of_norm = |part: &str| (self.get)(&format!("{name}.bn.{part}"), &[to]);
        let (gain, shift) = (of_norm("weight")?, of_norm("bias")?);
        let (mean, variance) = (of_norm("running_mean")?, of_norm("running_var")?);
        let mut bias = Vec::with_capacity(to);
        for (i, weight) in weight.chunks_exact_mut(from * k * l).enumerate() {
            let factor = f64::from(gain[i]) / (f64::from(variance[i]) + EPS).sqrt();
            for v in weight {
                *v = (f64::from(*v) * factor) as f32;
            }
            bias.push((f64::from(shift[i]) - f64::from(mean[i]) * factor) as f32);
        }
        let places = vec![self.specs.len()];
        for (part, shape, values) in [("weight", vec![to, from, k, l], weight), ("bias", vec![to], bias)] {
            self.specs.push(Spec { name: format!("{name}.{part}"), shape, init: Init::Zero });
            self.parameters.extend(values);
        }
        Ok(op::Conv { places, settings, relu: true })
    }

    fn conv(&mut self, name: &str, from: usize, to: usize, conv: Conv2d) -> Result<Step, E> {
        Ok(Step::Conv(self.layer(name, from, to, conv)?))
    }

    /// Convolutions one after another: name, output channels and kernel of each. All keep the size.
    fn chain(&mut self, block: &str, from: usize, layers: &[(&str, usize, [usize; 2])]) -> Result<Vec<Step>, E> {
        let mut from = from;
        let mut steps = Vec::with_capacity(layers.len());
        for &(name, to, kernel) in layers {
            steps.push(self.conv(&format!("{block}.{name}"), from, to, Conv2d::same(kernel, 1))?);
            from = to;
        }
        Ok(steps)
    }

    /// A chain that a convolution halves at its end.
    fn halved(
        &mut self,
        block: &str,
        from: usize,
        layers: &[(&str, usize, [usize; 2])],
        (name, to): (&str, usize),
    ) -> Result<Vec<Step>, E> {
        let mut steps = self.chain(block, from, layers)?;
        let from = layers.last().map_or(from, |&(_, to, _)| to);
        let conv = Conv2d { kernel: [3, 3], stride: 2, padding: Padding::Valid };
        steps.push(self.conv(&format!("{block}.{name}"), from, to, conv)?);
        Ok(steps)
    }

    /// A pool and a 1x1 convolution.
    fn pooled(&mut self, block: &str, from: usize, to: usize, pool: Pool2d) -> Result<Vec<Step>, E> {
        let mut steps = vec![Step::Pool(pool)];
        steps.extend(self.chain(block, from, &[("branch_pool", to, [1, 1])])?);
        Ok(steps)
    }

    fn block_a(&mut self, name: &str, from: usize, pooled: usize) -> Result<Branches, E> {
        Ok(vec![
            self.chain(name, from, &[("branch1x1", 64, [1, 1])])?,
            self.chain(name, from, &[("branch5x5_1", 48, [1, 1]), ("branch5x5_2", 64, [5, 5])])?,
            self.chain(
                name,
                from,
                &[("branch3x3dbl_1", 64, [1, 1]), ("branch3x3dbl_2", 96, [3, 3]), ("branch3x3dbl_3", 96, [3, 3])],
            )?,
            self.pooled(name, from, pooled, AVERAGE)?,
        ])
    }

    fn block_b(&mut self, name: &str, from: usize) -> Result<Branches, E> {
        Ok(vec![
            self.halved(name, from, &[], ("branch3x3", 384))?,
            self.halved(
                name,
                from,
                &[("branch3x3dbl_1", 64, [1, 1]), ("branch3x3dbl_2", 96, [3, 3])],
                ("branch3x3dbl_3", 96),
            )?,
            vec![Step::Pool(HALVED)],
        ])
    }

    fn block_c(&mut self, name: &str, mid: usize) -> Result<Branches, E> {
        let from = 768;
        Ok(vec![
            self.chain(name, from, &[("branch1x1", 192, [1, 1])])?,
            self.chain(
                name,
                from,
                &[("branch7x7_1", mid, [1, 1]), ("branch7x7_2", mid, [1, 7]), ("branch7x7_3", 192, [7, 1])],
            )?,
            self.chain(
                name,
                from,
                &[
                    ("branch7x7dbl_1", mid, [1, 1]),
                    ("branch7x7dbl_2", mid, [7, 1]),
                    ("branch7x7dbl_3", mid, [1, 7]),
                    ("branch7x7dbl_4", mid, [7, 1]),
                    ("branch7x7dbl_5", 192, [1, 7]),
                ],
            )?,
            self.pooled(name, from, 192, AVERAGE)?,
        ])
    }

    fn block_d(&mut self, name: &str) -> Result<Branches, E> {
        let from = 768;
        let long = [("branch7x7x3_1", 192, [1, 1]), ("branch7x7x3_2", 192, [1, 7]), ("branch7x7x3_3", 192, [7, 1])];
        Ok(vec![
            self.halved(name, from, &[("branch3x3_1", 192, [1, 1])], ("branch3x3_2", 320))?,
            self.halved(name, from, &long, ("branch7x7x3_4", 192))?,
            vec![Step::Pool(HALVED)],
        ])
    }

    fn block_e(&mut self, name: &str, from: usize, pool: Pool2d) -> Result<Branches, E> {
        let mut one = self.chain(name, from, &[("branch3x3_1", 384, [1, 1])])?;
        one.push(self.split(name, ["branch3x3_2a", "branch3x3_2b"])?);
        let mut two = self.chain(name, from, &[("branch3x3dbl_1", 448, [1, 1]), ("branch3x3dbl_2", 384, [3, 3])])?;
        two.push(self.split(name, ["branch3x3dbl_3a", "branch3x3dbl_3b"])?);
        Ok(vec![self.chain(name, from, &[("branch1x1", 320, [1, 1])])?, one, two, self.pooled(name, from, 192, pool)?])
    }

    /// A row and a column of 384 channels each.
    fn split(&mut self, block: &str, [row, column]: [&str; 2]) -> Result<Step, E> {
        Ok(Step::Split([
            self.layer(&format!("{block}.{row}"), 384, 384, Conv2d::same([1, 3], 1))?,
            self.layer(&format!("{block}.{column}"), 384, 384, Conv2d::same([3, 1], 1))?,
        ]))
    }
}
