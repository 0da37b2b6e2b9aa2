//! Whether a device computes what the processor computes: operations, networks with their gradients, training and chains.
//!
//! It is the test suite on a user's machine. Every comparison is with the processor's kernels in the same precision, and its
//! error the root of the mean squared difference over that of the values.

use crate::config::{Config, ConfigError, Layers, Precision};
use crate::data::Batch;
use crate::diffusion::{Diffusion, Reverse};
use crate::event::{Emit, Event};
use crate::sample::{Chain, Guidance, Guide, Model, Seeded, Subjects, Weak};
use crate::train::{Task, Trainer};
use crate::{Device, Error};
use ddpm_kernels::{Conv2d, HeadOrder, Padding, Pool2d, PoolKind, Resample};
use ddpm_math::{Domain, Stream};
use ddpm_net::network::{Classifier, Network, Unet};
use ddpm_net::op::{Conv, Norm, Op, Wanted};
use ddpm_net::{Engine, Feed, GradientPlace, Graph, Init, Layout, Parameters, Plan, RunPosition, Shape, Spec, Value};
use serde::Serialize;
use std::sync::Arc;

/// What one comparison found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was compared.
    pub what: String,
    /// In which precision.
    pub precision: Precision,
    /// How far off it is.
    pub error: f64,
    /// How far off it may be.
    pub tolerance: f64,
}

impl Finding {
    /// Whether it is near enough.
    pub fn is_good(&self) -> bool {
        self.error <= self.tolerance
    }
}

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::F16];

/// Root of the mean squared difference over that of the expected values; infinite where a value is not finite.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "values to compare");
    let square = |v: f64| v * v;
    let of: f64 = expected.iter().map(|&v| square(v.into())).sum();
    let off: f64 = found.iter().zip(expected).map(|(&f, &e)| square(f64::from(f) - f64::from(e))).sum();
    if off.is_finite() { (off / of.max(f64::MIN_POSITIVE)).sqrt() } else { f64::INFINITY }
}

fn normal(seed: u64, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    Stream::new(seed, Domain::Validation, 0, 0).fill_normal(&mut values);
    values
}

/// Compares a device with the processor. Each finding is told as soon as it is there.
///
/// # Errors
/// A device that fails.
pub fn check(device: Device, emit: &mut Emit) -> Result<Vec<Finding>, Error> {
    let mut all = Vec::new();
    let mut tell = |finding: Finding| {
        emit(Event::Checked(finding.clone()));
        all.push(finding);
    };
    Device::guard(|| {
        operations(device, &mut tell);
        networks(device, &mut tell)?;
        training(device, &mut tell)?;
        chains(device, &mut tell)
    })??;
    Ok(all)
}

/// An operation on inputs of some shapes.
struct Case {
    what: String,
    inputs: Vec<Shape>,
    /// The first input that is in f32 whatever the precision, as rows are.
    floats: usize,
    op: Op,
}

/// No input is in f32 whatever the precision.
const NO_FLOATS: usize = usize::MAX;

fn operations(device: Device, tell: &mut dyn FnMut(Finding)) {
    let tolerance = |precision| match precision {
        Precision::F32 | Precision::Bf16x3 => 1e-5,
        Precision::Bf16 => 6e-3,
        Precision::F16 => 1e-3,
    };
    for precision in PRECISIONS {
        for (layout, case) in cases() {
            let layout = Arc::new(layout);
            let mut graph = Graph::new(Arc::clone(&layout));
            let mut given = Vec::new();
            let mut operands = Vec::new();
            for (i, &shape) in case.inputs.iter().enumerate() {
                let value = graph.input(shape, Precision::F32);
                given.push((value, normal(i as u64, shape.len())));
                let floats = i >= case.floats || precision == Precision::F32;
                operands.push(if floats { value } else { graph.add(Op::Cast(precision), &[value]) });
            }
            let made = graph.add(case.op.clone(), &operands);
            let out = if graph.precision(made) == Precision::F32 {
                made
            } else {
                graph.add(Op::Cast(Precision::F32), &[made])
            };
            let plan = Plan::new(&graph, &[out], GradientPlace::Outside);
            let values = normal(77, layout.len()).iter().map(|v| 0.2 * v).collect();
            let parameters = Parameters::new(layout, values);
            let inputs: Vec<(Value, &[f32])> =
                given.iter().map(|(value, values)| (*value, values.as_slice())).collect();
            let on = |device: Device| device.compute(&plan, &parameters, &inputs, &[out]).remove(0);
            let error = error(&on(device), &on(Device::Cpu));
            tell(Finding { what: case.what, precision, error, tolerance: tolerance(precision) });
        }
    }
}

fn cases() -> Vec<(Layout, Case)> {
    let mut all = Vec::new();
    let spec = |name: &str, shape: &[usize]| Spec { name: name.into(), shape: shape.to_vec(), init: Init::Zero };
    let shape = |n, h, w, c| Shape { n, h, w, c };
    let none = || Layout::new(vec![]);
    let conv =
        |o: usize, i: usize, k: [usize; 2]| Layout::new(vec![spec("weight", &[o, i, k[0], k[1]]), spec("bias", &[o])]);
    let mut add = |layout: Layout, what: &str, inputs: &[Shape], floats: usize, op: Op| {
        all.push((layout, Case { what: what.into(), inputs: inputs.to_vec(), floats, op }));
    };
    let layer = |settings, relu| Conv { places: vec![0], settings, relu };
    let settings = [
        ("3x3", Conv2d::same([3, 3], 1), [32, 32], [9, 7]),
        ("3x3", Conv2d::same([3, 3], 1), [64, 40], [16, 16]),
        ("3x3 from 3 channels", Conv2d::same([3, 3], 1), [32, 3], [8, 8]),
        ("3x3 to 6 channels", Conv2d::same([3, 3], 1), [6, 32], [8, 8]),
        ("3x3 stride 2", Conv2d::same([3, 3], 2), [48, 32], [8, 8]),
        ("3x3 stride 2, uncentred", Conv2d { kernel: [3, 3], stride: 2, padding: Padding::After }, [32, 32], [8, 8]),
        ("1x1", Conv2d::same([1, 1], 1), [96, 32], [7, 5]),
        ("1x7", Conv2d::same([1, 7], 1), [32, 32], [9, 9]),
    ];
    for (name, settings, [o, i], [h, w]) in settings {
        let x = shape(3, h, w, i);
        let [oh, ow] = settings.output_size([h, w]);
        let y = shape(3, oh, ow, o);
        add(
            conv(o, i, settings.kernel),
            &format!("convolution {name}"),
            &[x],
            NO_FLOATS,
            Op::Conv(layer(settings, false)),
        );
        add(
            conv(o, i, settings.kernel),
            &format!("convolution {name} + residual"),
            &[x, y],
            NO_FLOATS,
            Op::Conv(layer(settings, false)),
        );
        add(
            conv(o, i, settings.kernel),
            &format!("convolution {name} + ReLU"),
            &[x],
            NO_FLOATS,
            Op::Conv(layer(settings, true)),
        );
        let plain = Wanted { parameters: false, onto: false };
        let onto = Wanted { onto: true, ..plain };
        let grad = |wanted| Op::ConvInputGrad(layer(settings, false), x, wanted);
        add(conv(o, i, settings.kernel), &format!("convolution {name}, input gradient"), &[y], NO_FLOATS, grad(plain));
        add(
            conv(o, i, settings.kernel),
            &format!("convolution {name}, input gradient onto"),
            &[y, x],
            NO_FLOATS,
            grad(onto),
        );
    }
    for (c, h, w) in [(32, 5, 7), (96, 8, 8), (256, 4, 4), (64, 1, 1)] {
        let x = shape(3, h, w, c);
        let affine = || Layout::new(vec![spec("weight", &[c]), spec("bias", &[c])]);
        for (film, silu) in [(false, false), (true, true)] {
            let norm = Norm { place: 0, groups: 32, eps: 1e-5, silu, dropout: None, film };
            let mut inputs = vec![x];
            inputs.extend(film.then_some(Shape::rows(3, 2 * c)));
            add(
                affine(),
                &format!("group norm of {c} channels, {h}x{w}, film and SiLU {silu}"),
                &inputs,
                1,
                Op::Norm(norm),
            );
        }
    }
    for (t, ch, heads, order) in
        [(5, 32, 2, HeadOrder::QkvFirst), (8, 64, 1, HeadOrder::HeadsFirst), (4, 32, 3, HeadOrder::HeadsFirst)]
    {
        let qkv = shape(2, t, t, 3 * ch * heads);
        let out = shape(2, t, t, ch * heads);
        add(none(), &format!("attention, {heads} heads of {ch}"), &[qkv], NO_FLOATS, Op::Attention(heads, order));
        add(
            none(),
            &format!("attention, {heads} heads of {ch}, gradient"),
            &[out, qkv],
            NO_FLOATS,
            Op::AttentionGrad(heads, order),
        );
    }
    let x = shape(2, 6, 4, 24);
    add(none(), "doubling", &[x], NO_FLOATS, Op::Resample(Resample::Up, 1.0));
    add(none(), "halving", &[x], NO_FLOATS, Op::Resample(Resample::Down, 0.25));
    add(none(), "concatenation", &[x, shape(2, 6, 4, 40)], NO_FLOATS, Op::Concat);
    add(none(), "concatenation of odd channels", &[shape(2, 3, 3, 5), shape(2, 3, 3, 8)], NO_FLOATS, Op::Concat);
    add(none(), "channels", &[x], NO_FLOATS, Op::TakeChannels(8, 16));
    add(none(), "odd channels", &[x], NO_FLOATS, Op::TakeChannels(3, 7));
    add(none(), "SiLU", &[shape(1, 1, 1, 1003)], NO_FLOATS, Op::Silu);
    add(none(), "SiLU gradient", &[x, x], NO_FLOATS, Op::SiluGrad);
    add(none(), "ReLU", &[x], NO_FLOATS, Op::Relu);
    add(none(), "ReLU gradient", &[x, x], NO_FLOATS, Op::ReluGrad);
    add(none(), "sum", &[x, x], NO_FLOATS, Op::Add);
    add(none(), "rows added", &[x, Shape::rows(2, 24)], 1, Op::AddRows);
    add(none(), "sum over pixels", &[x], NO_FLOATS, Op::SumPixels(0.5));
    for kind in [PoolKind::Max, PoolKind::Average] {
        for (stride, padding) in [(1, Padding::Same), (2, Padding::Valid)] {
            let settings = Pool2d { kind, stride, padding };
            add(none(), &format!("pooling {kind:?} {padding:?}"), &[shape(2, 9, 7, 24)], NO_FLOATS, Op::Pool(settings));
        }
    }
    all
}

/// The networks that are tried: families, heads and conditions.
const NETWORKS: [(&str, &str); 6] = [
    (
        "ADM, scale and shift, residual resampling, new order",
        "use_new_attention_order = true\nresblock_updown = true\nnum_head_channels = 16",
    ),
    (
        "ADM, shift alone, plain resampling, old order, dropout",
        "use_scale_shift_norm = false\nnum_heads = 2\ndropout = 0.2",
    ),
    (
        "ADM with classes and learned variance",
        "class_cond = true\nnum_classes = 3\n[diffusion]\nvariance = \"learned-range\"",
    ),
    ("ADM, blocks computed again", "use_checkpoint = true\ndropout = 0.1"),
    ("DDIM's", "arch = \"ddim\"\ndropout = 0.1"),
    ("super-resolution", "arch = \"superres\"\nsmall_size = 8"),
];

/// A classifier of three classes.
const CLASSIFIER: &str = "[classifier]\nwidth = 32\ndepth = 1\nchannel_mult = [1, 2]\nattention_resolutions = [8]\n\
                          num_head_channels = 32\nnum_classes = 3\n";

fn config(text: &str, precision: Precision) -> Result<Config, Error> {
    let base = "image_size = 16\nin_channels = 3\nnum_channels = 32\nnum_res_blocks = 1\nchannel_mult = [1, 2]\nattention_resolutions = [8]\n";
    let text = format!("[model]\nprecision = \"{}\"\n{base}{text}", precision.name());
    let mut layers = Layers::default();
    layers.add(text.parse().map_err(|e: toml::de::Error| ConfigError(e.to_string()))?)?;
    let mut config = layers.resolve()?;
    config.train.batch_size = 4;
    Ok(config)
}

fn unet(config: &Config, device: Device) -> Result<Engine<Unet>, Error> {
    Ok(Engine::new(Unet::new(config.model.network(config.diffusion.variance)?), device))
}

/// Parameters none of which is zero.
fn parameters(layout: &Arc<Layout>) -> Parameters {
    let mut all = Parameters::initial(layout, 1);
    let noise = normal(3, all.values().len());
    all.values_mut().iter_mut().zip(noise).for_each(|(v, noise)| *v += 0.03 * noise);
    all
}

fn networks(device: Device, tell: &mut dyn FnMut(Finding)) -> Result<(), Error> {
    for precision in PRECISIONS {
        for (name, text) in NETWORKS {
            let config = config(text, precision)?;
            let on_cpu = unet(&config, Device::Cpu)?;
            let on_device = unet(&config, device)?;
            let exact = unet(&self::config(text, Precision::F32)?, Device::Cpu)?;
            let parameters = parameters(on_cpu.network().layout());
            let n = 3;
            let (x, low_res) = (normal(5, n * 3 * 256), normal(6, n * 3 * 256));
            let feed = Feed {
                images: &x,
                size: [16; 2],
                times: &[3.0, 500.5, 999.0],
                labels: config.model.class_cond.then_some(&[2, 0, 1]),
                low_res: on_cpu.network().config().low_res.then_some(&low_res),
                position: Some(RunPosition { seed: 9, position: 1 << 33 }),
            };
            // In half precision a device may be as far from exact results as the processor is.
            let mut finding = |what: &str, of: &dyn Fn(&Engine<Unet>) -> Vec<f32>| {
                let expected = of(&exact);
                let own = if precision == Precision::F32 { 0.0 } else { 1.5 * error(&of(&on_cpu), &expected) };
                let (what, error) = (format!("network {name}: {what}"), error(&of(&on_device), &expected));
                tell(Finding { what, precision, error, tolerance: own + 2e-5 });
            };
            let still = Feed { position: None, ..feed };
            finding("output", &|engine| engine.forward(&parameters, still));
            finding("gradient of the parameters", &|engine| {
                let loss = |_, out: &[f32], grad: &mut [f32]| {
                    grad.iter_mut().zip(out).for_each(|(g, o)| *g = (0.3 - o) / out.len() as f32 * 64.0);
                };
                engine.gradient(&parameters, feed, true, loss).0.values().into_owned()
            });
            finding("gradient of the images", &|engine| {
                engine.image_gradient(&parameters, still, |_, out, grad| {
                    grad.iter_mut().zip(out).for_each(|(g, o)| *g = (0.3 - o) / 8.0);
                })
            });
        }
    }
    Ok(())
}

fn training(device: Device, tell: &mut dyn FnMut(Finding)) -> Result<(), Error> {
    for precision in PRECISIONS {
        // One with a bound in its loss, so that all of the loss is tried.
        let mut config = config(NETWORKS[2].1, precision)?;
        config.perturbation.gamma = 0.1;
        config.train.lr = 1e-3;

        config.train.microbatch = 2;
        config.train.grad_clip = 1.0;
        let images: Vec<f32> = normal(8, 4 * 3 * 256).iter().map(|v| v.clamp(-1.0, 1.0)).collect();
        let losses = |device| -> Result<Vec<f32>, Error> {
            let mut trainer = Trainer::new(config.clone(), Task::new(&config, device)?, None)?;
            if precision == Precision::F16 {
                // Low enough that no step overflows.
                trainer.state.progress.lg_loss_scale = Some(8.0);
            }
            let step = |i| {
                let report = trainer.train_step(&Batch {
                    images: images.clone(),
                    labels: Some(vec![0, 1, 2, 0]),
                    position: 4 * i,
                })?;
                Ok([report.mean_loss(), report.grad_norm.map_or(0.0, |norm| norm.get())].map(|v| v as f32))
            };
            Ok((0..6u64).map(step).collect::<Result<Vec<_>, Error>>()?.concat())
        };
        let error = error(&losses(device)?, &losses(Device::Cpu)?);
        let tolerance = match precision {
            Precision::F32 | Precision::Bf16x3 => 1e-4,
            Precision::Bf16 => 5e-2,
            Precision::F16 => 1e-2,
        };
        tell(Finding { what: "losses and gradient norms of six training steps".into(), precision, error, tolerance });
    }
    Ok(())
}

/// What leads a chain.
#[derive(Clone, Copy, PartialEq)]
enum Led {
    Not,
    /// A classifier's gradient.
    ByClassifier,
    /// The same network without classes, in one batch or not.
    FromNoClass {
        together: bool,
    },
    /// Another network, which has learned variances.
    FromAnother,
}

/// The chains that are tried: name, steps, settings and what leads them.
const CHAINS: [(&str, usize, &str, Led); 11] = [
    ("ddpm", 6, "", Led::Not),
    ("ddim", 4, "sampler = \"ddim\"", Led::Not),
    ("dpm-solver++-sde", 5, "sampler = \"dpm-solver++-sde\"", Led::Not),
    ("unipc", 5, "sampler = \"unipc\"", Led::Not),
    ("heun with churn", 4, "sampler = \"heun\"\nchurn = 2.0", Led::Not),
    ("ddpm, led by a classifier, corrected", 6, CORRECTED, Led::ByClassifier),
    (
        "unipc, led by a classifier, corrected",
        5,
        "sampler = \"unipc\"\ncorrect = \"ideal-ip:0.2; dcw:pixel,0.1\"",
        Led::ByClassifier,
    ),
    ("ddim, led by a classifier", 4, "sampler = \"ddim\"\neta = 0.5", Led::ByClassifier),
    ("ddpm, classifier-free, corrected", 6, CORRECTED, Led::FromNoClass { together: true }),
    (
        "heun, classifier-free in an interval, two calls",
        4,
        "sampler = \"heun\"\nguidance_interval = [0.3, 50.0]",
        Led::FromNoClass { together: false },
    ),
    ("unipc, led from another network", 5, "sampler = \"unipc\"", Led::FromAnother),
];
const CORRECTED: &str = "correct = \"es:1.05; shift:7; dcw:double,0.1,-0.1; noise:1.1\"";

fn chains(device: Device, tell: &mut dyn FnMut(Finding)) -> Result<(), Error> {
    for (name, steps, settings, led) in CHAINS {
        let text = |variance: &str| {
            format!(
                "class_cond = true\nnum_classes = 3\n[diffusion]\nvariance = \"{variance}\"\n{CLASSIFIER}[sample]\n\
                 guidance_scale = 2.5\n{settings}"
            )
        };
        let config = config(&text("fixed-large"), Precision::F32)?;
        let diffusion = Diffusion::new(&config.diffusion, &steps.to_string().parse().unwrap_or_default())?;
        let drawn = |device| -> Result<Vec<f32>, Error> {
            let network = unet(&config, device)?;
            let parameters = parameters(network.network().layout());
            let guide = || -> Result<Guide, Error> {
                let classifier = Classifier::new(config.classifier_network()?);
                let parameters = self::parameters(classifier.layout());
                Ok(Guide::new(Engine::new(classifier, device), parameters, 2.0))
            };
            let guide = (led == Led::ByClassifier).then(guide).transpose()?;
            let model = |network, parameters| Model { network, parameters, size: [16; 2] };
            let another = unet(&self::config(&text("learned-range"), Precision::F32)?, device)?;
            let mut of_another = self::parameters(another.network().layout());
            of_another.values_mut().iter_mut().for_each(|v| *v *= 0.9);
            let another = model(&another, &of_another);
            let weak = match led {
                Led::FromNoClass { together } => Some(Weak::Unconditional { together }),
                Led::FromAnother => Some(Weak::Network(&another)),
                Led::Not | Led::ByClassifier => None,
            };
            let guidance = Guidance::rule(&config.sample).zip(weak).map(|(rule, weak)| Guidance { rule, weak });
            let chain = Chain {
                diffusion: &diffusion,
                network: &model(&network, &parameters),
                reverse: &Reverse::new(&config.sample),
                guide: guide.as_ref(),
                guidance: guidance.as_ref(),
                shape: [3, 16, 16],
            };
            let subjects = Subjects { images: &[0, 1, 2], labels: Some(&[2, 0, 1]), low_res: None, draws: &Seeded(4) };
            Ok(chain.draw(subjects, |_| true).unwrap_or_default())
        };
        let error = error(&drawn(device)?, &drawn(Device::Cpu)?);
        let what = format!("a chain of {steps} steps, {name}");
        tell(Finding { what, precision: Precision::F32, error, tolerance: 1e-4 });
    }
    Ok(())
}
