//! The operations as plain loops in f64.

use ddpm_kernels::conv::Geometry;
use ddpm_kernels::{Conv2d, HeadOrder, Padding};

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conv {
    pub(crate) n: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) c: usize,
    pub(crate) o: usize,
    /// Rows and columns of the kernel.
    pub(crate) k: [usize; 2],
    pub(crate) stride: usize,
    pub(crate) padding: Padding,
}

impl Conv {
    /// A square kernel with padding to the same size.
    pub(crate) const fn same([n, h, w]: [usize; 3], [c, o]: [usize; 2], k: usize, stride: usize) -> Self {
        Self { n, h, w, c, o, k: [k, k], stride, padding: Padding::Same }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        Geometry::new(Conv2d { kernel: self.k, stride: self.stride, padding: self.padding }, self.input(), self.o)
    }

    /// Zeros before and after, by axis.
    fn pad(&self) -> [[usize; 2]; 2] {
        self.k.map(|k| match self.padding {
            Padding::Same => [k / 2, k / 2],
            Padding::Valid => [0, 0],
            Padding::After => [0, k / 2],
        })
    }

    pub(crate) fn input(&self) -> [usize; 4] {
        [self.n, self.h, self.w, self.c]
    }

    pub(crate) fn weight(&self) -> [usize; 4] {
        [self.o, self.c, self.k[0], self.k[1]]
    }

    /// PyTorch's output size: `(size + zeros − k) / stride + 1`.
    pub(crate) fn output(&self) -> [usize; 4] {
        let zeros = self.pad().map(|[before, after]| before + after);
        let out = |size: usize, axis: usize| (size + zeros[axis] - self.k[axis]) / self.stride + 1;
        [self.n, out(self.h, 0), out(self.w, 1), self.o]
    }

    pub(crate) fn forward(&self, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let Conv { n, h, w, c, o, k: [k, l], stride, .. } = *self;
        let [[top, _], [side, _]] = self.pad();
        let [_, oh, ow, _] = self.output();
        let mut y = Vec::with_capacity(n * oh * ow * o);
        for image in 0..n {
            for oy in 0..oh {
                for ox in 0..ow {
                    for j in 0..o {
                        let mut sum = bias[j];
                        for ky in 0..k {
                            for kx in 0..l {
                                let (iy, ix) = (oy * stride + ky, ox * stride + kx);
                                if iy < top || iy >= h + top || ix < side || ix >= w + side {
                                    continue;
                                }
                                let pixel = ((image * h + iy - top) * w + ix - side) * c;
                                for i in 0..c {
                                    sum += x[pixel + i] * weight[((j * c + i) * k + ky) * l + kx];
                                }
                            }
                        }
                        y.push(sum);
                    }
                }
            }
        }
        y
    }
}

/// Sizes and settings of a group normalisation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    pub(crate) n: usize,
    pub(crate) pixels: usize,
    pub(crate) c: usize,
    pub(crate) groups: usize,
    pub(crate) eps: f32,
    pub(crate) silu: bool,
}

impl Norm {
    /// Mean and 1/√(variance + eps) of one image's group.
    pub(crate) fn statistics(&self, x: &[f64], image: usize, group: usize) -> (f64, f64) {
        let per_group = self.c / self.groups;
        let values: Vec<f64> = (0..self.pixels)
            .flat_map(|pixel| {
                (0..per_group).map(move |i| (image * self.pixels + pixel) * self.c + group * per_group + i)
            })
            .map(|at| x[at])
            .collect();
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count;
        (mean, 1.0 / (variance + f64::from(self.eps)).sqrt())
    }

    pub(crate) fn forward(&self, x: &[f64], weight: &[f64], bias: &[f64], film: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; x.len()];
        for image in 0..self.n {
            for i in 0..self.c {
                let (mean, rstd) = self.statistics(x, image, i / (self.c / self.groups));
                for pixel in 0..self.pixels {
                    let at = (image * self.pixels + pixel) * self.c + i;
                    let normal = (x[at] - mean) * rstd * weight[i] + bias[i];
                    let u = normal * (1.0 + film[image * 2 * self.c + i]) + film[image * 2 * self.c + self.c + i];
                    y[at] = if self.silu { u / (1.0 + (-u).exp()) } else { u };
                }
            }
        }
        y
    }
}

/// Sizes of a self-attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) n: usize,
    pub(crate) t: usize,
    pub(crate) heads: usize,
    pub(crate) ch: usize,
    pub(crate) order: HeadOrder,
}

impl Attention {
    pub(crate) fn c(&self) -> usize {
        self.heads * self.ch
    }

    /// Index of a value of the queries (`part` 0), keys (1) or values (2).
    pub(crate) fn at(&self, part: usize, image: usize, position: usize, head: usize, i: usize) -> usize {
        let channel = match self.order {
            HeadOrder::HeadsFirst => (head * 3 + part) * self.ch + i,
            HeadOrder::QkvFirst => (part * self.heads + head) * self.ch + i,
        };
        (image * self.t + position) * 3 * self.c() + channel
    }

    pub(crate) fn forward(&self, qkv: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; self.n * self.t * self.c()];
        for image in 0..self.n {
            for head in 0..self.heads {
                let get = |part, position, i| qkv[self.at(part, image, position, head, i)];
                for q in 0..self.t {
                    let scores: Vec<f64> = (0..self.t)
                        .map(|k| {
                            (0..self.ch).map(|i| get(0, q, i) * get(1, k, i)).sum::<f64>() / (self.ch as f64).sqrt()
                        })
                        .collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for i in 0..self.ch {
                        y[(image * self.t + q) * self.c() + head * self.ch + i] =
                            (0..self.t).map(|k| weights[k] / total * get(2, k, i)).sum();
                    }
                }
            }
        }
        y
    }
}

/// Σ yᵢ wᵢ, the scalar whose gradients are tested.
pub(crate) fn dot(y: &[f64], w: &[f32]) -> f64 {
    y.iter().zip(w).map(|(y, &w)| y * f64::from(w)).sum()
}
