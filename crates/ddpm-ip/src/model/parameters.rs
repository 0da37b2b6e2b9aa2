//! Named parameters, apart from the network that reads them.
//!
//! A network is a description that knows the places of its parameters in a list; the numbers themselves are a list of
//! flat tensors. So one network serves the weights being trained, every average of them and a checkpoint alike, and
//! optimizer, averages and files are loops over a list.

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use ddpm_math::{Domain, Stream};

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

    /// Its first values: from `seed` and its place alone.
    pub fn initial(&self, seed: u64, place: usize) -> Vec<f32> {
        let mut stream = Stream::new(seed, Domain::Init, place as u64, 0);
        let mut values = vec![0.0; self.len()];
        match self.init {
            Init::Zero => {}
            Init::One => values.fill(1.0),
            Init::Uniform(bound) => values.fill_with(|| ((stream.uniform() * 2.0 - 1.0) * bound) as f32),
            Init::Normal(deviation) => {
                stream.fill_normal(&mut values);
                for v in &mut values {
                    *v *= deviation as f32;
                }
            }
        }
        values
    }
}

/// The values of a network's parameters, each as a flat tensor, in the order of its specs.
#[derive(Clone, Debug)]
pub struct Parameters(pub(crate) Vec<Tensor<1>>);

impl Parameters {
    /// Puts values on a device. Give a device with autodiff for weights to be trained.
    pub fn from_values(values: Vec<Vec<f32>>, device: &Device) -> Self {
        Self(
            values
                .into_iter()
                .map(|v| {
                    let n = v.len();
                    Tensor::from_data(TensorData::new(v, [n]), device)
                })
                .collect(),
        )
    }

    /// First values for training.
    pub fn initial(specs: &[Spec], seed: u64, device: &Device) -> Self {
        Self::from_values(specs.iter().enumerate().map(|(i, s)| s.initial(seed, i)).collect(), device)
    }

    /// Zeros in the shape of these.
    #[must_use]
    pub fn zeros_like(&self) -> Self {
        Self(self.0.iter().map(|t| Tensor::zeros(t.shape(), &t.device())).collect())
    }

    /// The values, in order.
    pub fn to_values(&self) -> Vec<Vec<f32>> {
        self.0.iter().map(|t| host_values(t.clone())).collect()
    }

    /// The values of one parameter.
    pub(crate) fn value(&self, place: usize) -> Vec<f32> {
        host_values(self.0[place].clone())
    }

    /// The same values as leaves of an autodiff graph.
    #[must_use]
    pub fn tracked(&self) -> Self {
        Self(self.0.iter().map(|t| Tensor::from_inner(t.clone()).require_grad()).collect())
    }

    /// The same values as constants of an autodiff graph.
    pub(crate) fn constant(&self) -> Self {
        Self(self.0.iter().map(|t| Tensor::from_inner(t.clone())).collect())
    }

    /// The gradients of tracked parameters; zeros where the loss does not depend on one.
    #[must_use]
    pub fn gradients(&self, grads: &mut Gradients) -> Self {
        Self(
            self.0
                .iter()
                .map(|t| t.grad_remove(grads).unwrap_or_else(|| Tensor::zeros(t.shape(), &t.device().inner())))
                .collect(),
        )
    }

    /// The parameter at a place.
    pub(crate) fn flat(&self, place: usize) -> Tensor<1> {
        self.0[place].clone()
    }

    /// The parameter at a place, in its shape.
    pub(crate) fn get<const D: usize>(&self, place: usize, shape: [usize; D]) -> Tensor<D> {
        self.0[place].clone().reshape(shape)
    }

    /// Euclidean norm over all values.
    pub fn norm(&self) -> f64 {
        let squares: Vec<_> = self.0.iter().map(|t| ddpm_kernels::sum_squares(t.clone())).collect();
        host_values(Tensor::cat(squares, 0)).iter().map(|&v| f64::from(v)).sum::<f64>().sqrt()
    }
}

/// The values of a tensor, on the host.
pub(crate) fn host_values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().expect("all float tensors of this crate are f32")
}
