//! Named parameters in one flat buffer, apart from the network that reads them.
//!
//! A network is a description that knows the places of its parameters in a list; the numbers themselves are one buffer
//! with names as views. So one network serves the weights being trained, every average of them and a checkpoint alike, and
//! optimizer, averages, files and sums over processes go through one buffer.

use crate::device::done;
use crate::packed::PackedWeights;
use crate::values::Values;
use ddpm_cuda::{Address, Buffer, Gpu};
use ddpm_math::{Domain, Stream};
use std::ops::Range;
use std::sync::Arc;

/// How a parameter begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Zeros.
    Zero,
    /// Ones.
    One,
    /// Uniform in ± this bound.
    Uniform(f64),
    /// Normal with this standard deviation.
    Normal(f64),
}

/// Name, shape and beginning of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The reference's name, such as `input_blocks.1.0.in_layers.2.weight`.
    pub name: String,
    /// The reference's shape.
    pub shape: Vec<usize>,
    /// Its beginning.
    pub init: Init,
}

impl Spec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes its first values: from `seed` and its place alone.
    fn begin(&self, seed: u64, place: usize, values: &mut [f32]) {
        let mut stream = Stream::new(seed, Domain::Init, place as u64, 0);
        match self.init {
            Init::Zero => values.fill(0.0),
            Init::One => values.fill(1.0),
            Init::Uniform(bound) => values.fill_with(|| ((stream.uniform() * 2.0 - 1.0) * bound) as f32),
            Init::Normal(deviation) => {
                stream.fill_normal(values);
                for v in values {
                    *v *= deviation as f32;
                }
            }
        }
    }
}

/// The parameters of a network, and where each lies in a flat buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    specs: Vec<Spec>,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Layout {
    /// One parameter after another.
    pub fn new(specs: Vec<Spec>) -> Self {
        let mut end = 0;
        let ends = specs
            .iter()
            .map(|spec| {
                end += spec.len();
                end
            })
            .collect();
        Self { specs, ends }
    }

    /// Names, shapes and beginnings, in order.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Values of all parameters.
    pub fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the parameter at a place lies.
    pub fn range(&self, place: usize) -> Range<usize> {
        self.ends[place] - self.specs[place].len()..self.ends[place]
    }
}

/// The values of a network's parameters in one buffer, or of something that there is for each: a gradient, moments,
/// averages. They may lie in a GPU's memory; then they are copied when they are asked for.
#[derive(Clone, Debug)]
pub struct Parameters {
    layout: Arc<Layout>,
    values: Values,
    packed: PackedWeights,
}

impl Parameters {
    /// Values, parameter after parameter.
    ///
    /// # Panics
    /// If they are not as many as the layout has.
    pub fn new(layout: Arc<Layout>, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), layout.len(), "values of a network with other parameters");
        Self { layout, values: Values::new(values), packed: PackedWeights::default() }
    }

    /// The values of each parameter.
    ///
    /// # Panics
    /// If they are not as many as the layout has.
    pub fn from_values(layout: &Arc<Layout>, values: &[Vec<f32>]) -> Self {
        Self::new(Arc::clone(layout), values.concat())
    }

    /// First values for training.
    pub fn initial(layout: &Arc<Layout>, seed: u64) -> Self {
        let mut all = vec![0.0; layout.len()];
        for (place, spec) in layout.specs().iter().enumerate() {
            spec.begin(seed, place, &mut all[layout.range(place)]);
        }
        Self::new(Arc::clone(layout), all)
    }

    /// Zeros.
    pub fn zeros(layout: &Arc<Layout>) -> Self {
        Self::new(Arc::clone(layout), vec![0.0; layout.len()])
    }

    /// Zeros in the shape of these.
    #[must_use]
    pub fn zeros_like(&self) -> Self {
        Self::zeros(&self.layout)
    }

    /// Some of the values, one after another, as those of one parameter.
    #[must_use]
    pub fn part(&self, part: Range<usize>) -> Self {
        let spec = Spec { name: String::new(), shape: vec![part.len()], init: Init::Zero };
        Self::new(Arc::new(Layout::new(vec![spec])), self.values()[part].to_vec())
    }

    /// Which parameters these are.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// All values.
    pub fn values(&self) -> &[f32] {
        self.values.host()
    }

    /// All values, to be changed.
    pub fn values_mut(&mut self) -> &mut [f32] {
        self.packed.clear();
        self.values.host_mut()
    }

    /// A copy of some of the values in the memory of a GPU.
    pub fn part_on_gpu(&self, gpu: &'static Gpu, part: Range<usize>) -> Buffer {
        let copy = done(gpu.alloc(4 * part.len()));
        let from = self.gpu(gpu).at(4 * part.start);
        done(gpu.turn().and_then(|turn| turn.copy(copy.address(), from, 4 * part.len())));
        copy
    }

    /// Takes other values from the memory of a GPU, so many from each of some buffers.
    ///
    /// # Panics
    /// If they are not as many.
    pub fn set_on_gpu(&mut self, gpu: &'static Gpu, parts: &[(Buffer, usize)]) {
        assert_eq!(parts.iter().map(|(_, len)| len).sum::<usize>(), self.layout.len(), "values of other parameters");
        let (mut to, turn) = (self.gpu_mut(gpu), done(gpu.turn()));
        for (values, len) in parts {
            done(turn.copy(to, values.address(), 4 * len));
            to = to.at(4 * len);
        }
    }

    /// All values in the memory of a GPU.
    pub(crate) fn gpu(&self, gpu: &'static Gpu) -> Address {
        self.values.gpu(gpu)
    }

    /// All values in the memory of a GPU, to be changed.
    pub(crate) fn gpu_mut(&mut self, gpu: &'static Gpu) -> Address {
        self.packed.clear();
        self.values.gpu_mut(gpu)
    }

    /// Weights as the processor's convolutions read them.
    pub(crate) fn packed(&self) -> &PackedWeights {
        &self.packed
    }

    /// The values of the parameter at a place.
    pub fn get(&self, place: usize) -> &[f32] {
        &self.values()[self.layout.range(place)]
    }

    /// The values of the parameter at a place, to be changed.
    pub fn get_mut(&mut self, place: usize) -> &mut [f32] {
        let range = self.layout.range(place);
        &mut self.values_mut()[range]
    }

    /// Each parameter with its values.
    pub fn iter(&self) -> impl Iterator<Item = (&Spec, &[f32])> {
        self.layout.specs().iter().enumerate().map(|(place, spec)| (spec, self.get(place)))
    }

    /// The values of each parameter.
    pub fn to_values(&self) -> Vec<Vec<f32>> {
        self.iter().map(|(_, values)| values.to_vec()).collect()
    }

    /// Euclidean norm over all values.
    pub fn norm(&self) -> f64 {
        self.values.sum_squares().sqrt()
    }
}
