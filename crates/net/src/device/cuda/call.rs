//! What a step asks of NVIDIA's libraries, the same on a GPU and for a chip that is not there.

use crate::kind::{Precision, Shape};
use crate::op::{Conv, Op, extent};
use crate::plan::Step;
use crate::state::Layout;
use ddpm_cuda::{Convolution, Matrix, Pass, Product, Result, Type};
use ddpm_kernels::HeadOrder;
use ddpm_kernels::conv::Geometry;

/// What a step calls beside kernels of our own: what it [asks for](wanted), or what was chosen for that.
pub(super) enum Call<C, P> {
    /// Nothing.
    Kernels,
    /// A convolution; bias, residual and ReLU are still to be done after one without.
    Convolution(C),
    /// Matrix products.
    Products(Vec<P>),
    /// Products of a few rows in f32, by a kernel of our own.
    Rows,
    /// Attention whose scores never leave the multiprocessors.
    Attention,
}

impl<C, P> Call<C, P> {
    /// With what is chosen for its parts.
    pub(super) fn choose<D, Q>(
        self,
        convolution: impl FnOnce(C) -> Result<D>,
        product: impl FnMut(P) -> Result<Q>,
    ) -> Result<Call<D, Q>> {
        Ok(match self {
            Self::Kernels => Call::Kernels,
            Self::Convolution(wanted) => Call::Convolution(convolution(wanted)?),
            Self::Products(all) => Call::Products(all.into_iter().map(product).collect::<Result<_>>()?),
            Self::Rows => Call::Rows,
            Self::Attention => Call::Attention,
        })
    }
}

/// A convolution that is asked for.
pub(super) struct Wanted {
    convolution: Convolution,
    pass: Pass,
    /// Whether a ReLU follows, which no engine is asked for.
    relu: bool,
}

impl Wanted {
    /// What `plan` makes of the convolution and the first pass that has an engine. Where none has all of it, a kernel does the
    /// rest after the plain one.
    pub(super) fn choose<R>(&self, plan: impl Fn(&Convolution, Pass) -> Result<R>) -> Result<R> {
        match self.pass {
            Pass::Bias | Pass::ResidualBias if self.relu => plan(&self.convolution, Pass::Plain),
            Pass::Bias | Pass::ResidualBias => {
                plan(&self.convolution, self.pass).or_else(|_| plan(&self.convolution, Pass::Plain))
            }
            pass => plan(&self.convolution, pass),
        }
    }
}

/// Whether a convolution is a product of its pixels with the weights as they are.
fn is_product(g: &Geometry) -> bool {
    g.kernel == [1, 1] && g.stride == 1 && g.padding == [[0; 2]; 2]
}

/// Whether a convolution is a product of a few rows in f32.
pub(super) fn is_rows(g: &Geometry, precision: Precision) -> bool {
    precision == Precision::F32 && is_product(g) && [g.h, g.w] == [1, 1]
}

/// What a step asks for.
pub(super) fn wanted(step: &Step, layout: &Layout) -> Call<Wanted, Product> {
    let precision: Type = step.precision().into();
    let convolution =
        |g: &Geometry, pass, relu| Call::Convolution(Wanted { convolution: convolution(g, precision), pass, relu });
    match &step.op {
        Op::Conv(conv) => {
            let g = conv.geometry(step.inputs[0].kind.shape, layout);
            let residual = step.inputs.len() > 1;
            if is_rows(&g, step.precision()) && conv.places.len() == 1 && !conv.relu {
                return Call::Rows;
            }
            if is_product(&g) && !conv.relu {
                let (w, x, y) = factors(&g, precision);
                let product = Product { a: w.transpose(), b: x, d: y, batch: 1, bias: true, onto: residual };
                return Call::Products(vec![product]);
            }
            convolution(&g, if residual { Pass::ResidualBias } else { Pass::Bias }, conv.relu)
        }
        Op::ConvInputGrad(conv, x, wanted) => {
            let g = conv.geometry(*x, layout);
            if is_rows(&g, step.precision()) && conv.places.len() == 1 {
                return Call::Rows;
            }
            if is_product(&g) {
                let (w, x, y) = factors(&g, precision);
                let product = Product { a: w, b: y, d: x, batch: 1, bias: false, onto: wanted.onto };
                return Call::Products(vec![product]);
            }
            convolution(&g, Pass::InputGrad, false)
        }
        Op::ConvWeightGrad(conv) => {
            let g = conv.geometry(step.inputs[0].kind.shape, layout);
            if is_rows(&g, step.precision()) && conv.places.len() == 1 {
                return Call::Rows;
            }
            if is_product(&g) {
                return Call::Products(weight_products(conv, &g, precision, layout));
            }
            convolution(&g, Pass::WeightGrad, false)
        }
        Op::Attention(heads, order) | Op::AttentionGrad(heads, order) if Attention::is_fused(step, *heads, *order) => {
            Call::Attention
        }
        Op::Attention(heads, order) => {
            let parts = Attention::new(step.inputs[0].kind.shape, *heads, *order, precision);
            Call::Products(vec![parts.scores(), parts.output()])
        }
        Op::AttentionGrad(heads, order) => {
            let parts = Attention::new(step.inputs[1].kind.shape, *heads, *order, precision);
            let gradients = [parts.weights_grad(), parts.q_grad(), parts.k_grad(), parts.v_grad()];
            Call::Products([parts.scores()].into_iter().chain(gradients).collect())
        }
        _ => Call::Kernels,
    }
}

fn convolution(g: &Geometry, kind: Type) -> Convolution {
    Convolution {
        kind,
        n: g.n,
        input: [g.h, g.w, g.c],
        output: [g.out_h(), g.out_w(), g.o],
        kernel: g.kernel,
        stride: g.stride,
        before: g.padding.map(|[before, _]| before),
        after: g.padding.map(|[_, after]| after),
    }
}

/// Weights, input and output of a convolution over single pixels.
fn factors(g: &Geometry, kind: Type) -> (Matrix, Matrix, Matrix) {
    let rows = |rows, columns| Matrix::new(kind, [rows, columns], rows, 0);
    (rows(g.c, g.o), rows(g.c, g.rows()), rows(g.o, g.rows()))
}

/// The weights' gradients of layers side by side, each of its channels of the output's gradient, in f32.
fn weight_products(conv: &Conv, g: &Geometry, kind: Type, layout: &Layout) -> Vec<Product> {
    let product = |&place: &usize| {
        let outputs = layout.specs()[place].shape[0];
        let x = Matrix::new(kind, [g.c, g.rows()], g.c, 0);
        let grad = Matrix::new(kind, [outputs, g.rows()], g.o, 0);
        let d = Matrix::new(Type::F32, [g.c, outputs], g.c, 0);
        Product { a: x, b: grad.transpose(), d, batch: 1, bias: false, onto: false }
    };
    conv.places.iter().map(product).collect()
}

/// The products of one head's attention, over all images.
pub(super) struct Attention {
    /// Images, positions, channels of a head, and heads.
    pub(super) n: usize,
    pub(super) t: usize,
    pub(super) ch: usize,
    pub(super) heads: usize,
    order: HeadOrder,
    kind: Type,
}

impl Attention {
    pub(super) fn new(qkv: Shape, heads: usize, order: HeadOrder, kind: Type) -> Self {
        let e = extent(qkv, heads, order);
        Self { n: e.n, t: e.t, ch: e.ch, heads, order, kind }
    }

    /// Whether there are kernels of our own for it.
    pub(super) fn is_fused(step: &Step, heads: usize, order: HeadOrder) -> bool {
        let qkv = step.inputs.last().expect("queries, keys and values come last").kind;
        qkv.precision != Precision::F32 && matches!(extent(qkv.shape, heads, order).ch, 32 | 64)
    }

    /// Channels from one head to the next, and from queries to keys.
    pub(super) fn channel_steps(&self) -> [usize; 2] {
        match self.order {
            HeadOrder::HeadsFirst => [3 * self.ch, self.ch],
            HeadOrder::QkvFirst => [self.ch, self.c()],
        }
    }

    fn c(&self) -> usize {
        self.heads * self.ch
    }

    /// The first channel of queries, keys and values of a head.
    pub(super) fn offsets(&self, head: usize) -> [usize; 3] {
        let [from_head, from_part] = self.channel_steps();
        [0, 1, 2].map(|i| head * from_head + i * from_part)
    }

    /// Queries, keys or values.
    fn part(&self) -> Matrix {
        Matrix::new(self.kind, [self.ch, self.t], 3 * self.c(), 3 * self.c() * self.t)
    }

    /// A head of the output.
    fn head(&self) -> Matrix {
        Matrix::new(self.kind, [self.ch, self.t], self.c(), self.c() * self.t)
    }

    /// For each query a row of keys.
    fn square(&self, kind: Type) -> Matrix {
        Matrix::new(kind, [self.t; 2], self.t, self.t * self.t)
    }

    fn product(&self, a: Matrix, b: Matrix, d: Matrix) -> Product {
        Product { a, b, d, batch: self.n, bias: false, onto: false }
    }

    /// Of keys and queries.
    fn scores(&self) -> Product {
        self.product(self.part().transpose(), self.part(), self.square(Type::F32))
    }

    /// Of values and weights.
    fn output(&self) -> Product {
        self.product(self.part(), self.square(self.kind), self.head())
    }

    /// Of values and the output's gradient.
    fn weights_grad(&self) -> Product {
        self.product(self.part().transpose(), self.head(), self.square(Type::F32))
    }

    /// Of keys and the scores' gradient.
    fn q_grad(&self) -> Product {
        self.product(self.part(), self.square(self.kind), self.part())
    }

    /// Of queries and the scores' gradient.
    fn k_grad(&self) -> Product {
        self.product(self.part(), self.square(self.kind).transpose(), self.part())
    }

    /// Of the output's gradient and the weights.
    fn v_grad(&self) -> Product {
        self.product(self.head(), self.square(self.kind).transpose(), self.part())
    }
}
