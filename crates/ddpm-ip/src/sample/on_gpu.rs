//! Chains whose images stay on a GPU from x_T to the end.

use super::{Chain, Model, Subjects};
use crate::diffusion::Clip;
use crate::train::pairs;
use ddpm_math::{Corrections, ReverseStep, Rule, Update};
use ddpm_net::Feed;
use ddpm_net::gpu::{Address, Gpu, Mailbox, Result, args};
use ddpm_net::network::Network;

/// A chain that a GPU can take whole: noise from a seed, no guide, correction or churn, no clipping that looks
/// at whole images.
pub(super) struct OnGpu<'a> {
    chain: &'a Chain<'a>,
    model: &'a Model<'a>,
    gpu: &'static Gpu,
    seed: u64,
}

impl<'a> OnGpu<'a> {
    /// The chain on the GPU of its network, if that can take it.
    pub(super) fn new(chain: &'a Chain<'a>, subjects: &Subjects) -> Option<Self> {
        let model = chain.network.model()?;
        let (gpu, seed) = (model.network.gpu()?, subjects.draws.seed()?);
        let reverse = chain.reverse;
        let churns = matches!(reverse.rule, Rule::Heun(churn) if churn.amount > 0.0);
        let plain =
            reverse.corrections == Corrections::default() && !matches!(reverse.clip, Clip::Dynamic(_)) && !churns;
        (plain && chain.guide.is_none()).then_some(Self { chain, model, gpu, seed })
    }

    /// [`Chain::draw`].
    pub(super) fn run(&self, subjects: Subjects, mut each: impl FnMut(usize) -> bool) -> Result<Option<Vec<f32>>> {
        let Chain { diffusion, reverse, shape, .. } = *self.chain;
        let (n, values) = (subjects.images.len(), shape.iter().product::<usize>());
        let bytes = 4 * n * values;
        let images = self.gpu.upload(subjects.images)?;
        let plane = || self.gpu.alloc(bytes);
        let (x, kept, mut x_start) = (plane()?, plane()?, [plane()?, plane()?, plane()?]);
        // Earlier predictions that there are.
        let mut known = 0;
        let mut mail = Mailbox::new(self.gpu, size_of::<[u32; 31]>())?;
        {
            let args = args![x.address(), images.address(), self.seed as i64, values as i32];
            let turn = self.gpu.turn()?;
            turn.launch("initial_noise", pairs(values, n), args)?;
            // Before anything is kept it counts for nothing.
            turn.clear(kept.address(), bytes)?;
        }
        let stages = reverse.rule.stages(&diffusion.schedule, diffusion.schedule.len() - 1);
        for stage in stages {
            let step = ReverseStep::new(&diffusion.schedule, diffusion.prediction, diffusion.variance, &stage);
            let words = step.words(matches!(reverse.clip, Clip::Range).then_some(1.0));
            let earlier = [1, 2].map(|i| if i <= known { x_start[i].address() } else { Address::NULL });
            let times = vec![diffusion.model_time(stage.level.time); n];
            let network = self.model.network;
            let outputs = values / shape[0] * network.network().config().out_channels;
            let labels = network.network().config().num_classes.and(subjects.labels);
            let feed = Feed { labels, low_res: subjects.low_res, ..Feed::new(&[], self.model.size, &times) };
            network.forward_between(
                self.model.parameters,
                feed,
                |turn, to| turn.copy(to, x.address(), bytes),
                |turn, output| {
                    let step = mail.send(turn, &words)?;
                    let [newer, older] = earlier;
                    let (seed, number) = (self.seed as i64, stage.step as i32);
                    let args = args![
                        x.address(),
                        output,
                        x_start[0].address(),
                        newer,
                        older,
                        kept.address(),
                        step,
                        images.address(),
                        seed,
                        number,
                        values as i32,
                        outputs as i32,
                    ];
                    turn.launch("reverse_step", pairs(values, n), args)
                },
            );
            if matches!(stage.update, Update::Mix { .. }) {
                x_start.rotate_right(1);
                known = (known + 1).min(2);
            }
            if stage.ends_step && !each(stage.step + 1) {
                return Ok(None);
            }
        }
        x.download(n * values).map(Some)
    }
}
