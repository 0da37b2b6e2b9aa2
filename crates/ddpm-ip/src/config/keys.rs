//! Every key of the configuration with its one line of help.

/// A key of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The section it stands in.
    pub section: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// What it sets.
    pub help: &'static str,
}

impl Key {
    /// Its full name, such as `train.lr`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// Its flag without the dashes: the name in kebab-case, led by the section where the name alone says too little.
    pub fn flag(&self) -> String {
        let flag = match (self.section, self.name) {
            ("perturbation", "mode") => "perturbation".to_string(),
            ("perturbation", name) if !name.starts_with("gamma") => format!("perturbation-{name}"),
            ("classifier", "noised") => self.name.to_string(),
            ("classifier", name) => format!("classifier-{name}"),
            ("evaluation", name) => format!("evaluation-{name}"),
            (_, name) => name.to_string(),
        };
        flag.replace('_', "-")
    }
}

const fn key(section: &'static str, name: &'static str, help: &'static str) -> Key {
    Key { section, name, help }
}

/// All keys, in the order of the configuration.
pub const KEYS: &[Key] = &[
    key("model", "arch", "network: adm (U-Net of guided-diffusion), superres, classifier, ddim (U-Net of DDIM)"),
    key("model", "image_size", "side of the square images, in pixels"),
    key("model", "small_size", "side of the images that a super-resolution network enlarges, in pixels"),
    key("model", "in_channels", "channels of the images: 1 grey, 3 colour"),
    key("model", "num_channels", "base number of channels, which --channel-mult multiplies at each level"),
    key("model", "num_res_blocks", "residual blocks per level"),
    key("model", "channel_mult", "channel multiplier of each level, as in 1,2,2; empty: chosen by image size"),
    key("model", "attention_resolutions", "image sizes at which the network has attention, as in 16,8"),
    key("model", "num_heads", "attention heads, unless --num-head-channels is given"),
    key("model", "num_head_channels", "channels per attention head; -1: use --num-heads instead"),
    key("model", "num_heads_upsample", "attention heads in the upsampling half; -1: as many as --num-heads"),
    key("model", "dropout", "dropout probability in residual blocks"),
    key("model", "class_cond", "condition the network on class labels"),
    key("model", "num_classes", "number of classes; 0: as many as the data has"),
    key(
        "model",
        "use_scale_shift_norm",
        "the time embedding scales and shifts activations; false: it only shifts them",
    ),
    key("model", "resblock_updown", "residual blocks do the up- and downsampling; false: plain layers do it"),
    key("model", "conv_resample", "plain up- and downsampling layers have a convolution"),
    key(
        "model",
        "use_new_attention_order",
        "attention splits queries, keys and values first; false: it splits heads first",
    ),
    key("model", "precision", "activations and products in f32, bf16, f16, bf16x3 (f32 by AMX), auto (bf16 on a GPU)"),
    key("model", "use_checkpoint", "gradient checkpointing: recompute blocks in the backward pass to save memory"),
    key("classifier", "width", "base number of channels of the classifier"),
    key("classifier", "depth", "residual blocks per level of the classifier"),
    key(
        "classifier",
        "channel_mult",
        "channel multiplier of each level of the classifier; empty: chosen by image size",
    ),
    key("classifier", "attention_resolutions", "image sizes at which the classifier has attention"),
    key("classifier", "num_head_channels", "channels per attention head of the classifier"),
    key(
        "classifier",
        "use_scale_shift_norm",
        "the classifier's time embedding scales and shifts; false: it only shifts",
    ),
    key(
        "classifier",
        "resblock_updown",
        "the classifier's residual blocks do the downsampling; false: plain layers do it",
    ),
    key("classifier", "pool", "output layer of the classifier: attention, adaptive, spatial, spatial_v2"),
    key("classifier", "num_classes", "number of classes of the classifier; 0: as many as the data has"),
    key("classifier", "precision", "type of the classifier's activations and products: f32, bf16, f16, auto, bf16x3"),
    key("classifier", "noised", "train the classifier on noised images; false: on clean ones"),
    key("diffusion", "diffusion_steps", "number of diffusion steps T"),
    key("diffusion", "noise_schedule", "noise schedule: linear, cosine"),
    key("diffusion", "timestep_respacing", "timesteps to train at, as in 250, ddim50 or 10,15,20; empty: all"),
    key("diffusion", "prediction", "what the network predicts: epsilon, x-start, previous-x"),
    key("diffusion", "variance", "variance of the reverse steps: fixed-small, fixed-large, learned, learned-range"),
    key("diffusion", "loss", "training loss: mse, rescaled-mse, sum-mse, kl, rescaled-kl"),
    key("diffusion", "rescale_timesteps", "give the network timesteps scaled to 0 … 1000"),
    key("perturbation", "mode", "form of input perturbation: sampled (the paper's), equivalent, target-scaled"),
    key("perturbation", "gamma", "strength of input perturbation; 0: none"),
    key("perturbation", "gamma_start", "gamma at t = 0, where --perturbation-strength is linear or cosine"),
    key(
        "perturbation",
        "strength",
        "how gamma varies: constant; linear, cosine (in t); uniform, switched (per image); decay",
    ),
    key("perturbation", "cutoff", "share of the timesteps above which nothing is perturbed (linear, cosine)"),
    key("perturbation", "decay_steps", "training steps over which gamma falls to 0 (decay)"),
    key("perturbation", "probability", "probability that an image is perturbed at all (switched)"),
    key(
        "perturbation",
        "scaled",
        "scale gamma by the noise level of the timestep; false: the same gamma at all levels",
    ),
    key(
        "data",
        "data_dir",
        "images: digits (embedded), a folder of images, an .npz or .npy, an IDX file or its folder",
    ),
    key("data", "val_data_dir", "images to evaluate a classifier on every --eval-interval steps"),
    key("data", "labels", "a folder's class labels: prefix (file name up to _), folder, none; auto: prefix if needed"),
    key("data", "fit", "how images of another size are fitted: crop, pad"),
    key("data", "allow_upscale", "enlarge images smaller than --image-size"),
    key("data", "random_crop", "crop at a random place; false: in the centre"),
    key("data", "random_flip", "mirror each image with probability 1/2"),
    key("data", "on_bad_image", "what to do about images that cannot be read: fail, skip"),
    key("data", "exif_rotate", "rotate images as their EXIF data says; the reference ignores it"),
    key("data", "workers", "CPU threads that decode images ahead of the training"),
    key("classes", "names", "names of the classes, class 0 first; training sets this from the images' class names"),
    key("classes", "untrained", "classes without images, which the network has not learned; training sets this"),
    key("train", "steps", "optimizer steps to train for; 0: no limit; replaces a preset's duration"),
    key("train", "duration", "time to train for, such as 20m or 2h; empty: no limit; replaces a preset's steps"),
    key("train", "init_from", "start from the parameters of this checkpoint of any kind (fine-tuning)"),
    key("train", "resume_checkpoint", "resume from a checkpoint folder, or a model*.pt with its ema_*.pt and opt*.pt"),
    key("train", "batch_size", "images per optimizer step"),
    key("train", "microbatch", "images per forward pass (gradient accumulation); -1: the whole batch"),
    key(
        "train",
        "reduction",
        "how processes add up gradients: exact (their number changes no bit), fast (in any order)",
    ),
    key(
        "train",
        "shard_optimizer",
        "several processes keep moments and EMAs of a part of the parameters each (ZeRO 1)",
    ),
    key("train", "lr", "learning rate"),
    key("train", "weight_decay", "decoupled weight decay of AdamW"),
    key("train", "adam_betas", "AdamW's beta1 and beta2"),
    key("train", "adam_eps", "AdamW's epsilon"),
    key("train", "lr_warmup_steps", "steps over which the learning rate rises from 0; 0: no warmup"),
    key("train", "lr_anneal_steps", "steps over which the learning rate falls to 0, where the run ends; 0: constant"),
    key("train", "ema_rate", "decay rates of the EMAs of the weights, as in 0.999,0.9999"),
    key("train", "ema_warmup", "EMAs follow the weights more closely at first, which helps short runs"),
    key("train", "posthoc_ema", "also save EMAs of these lengths, for `ema` to make others from; no value: 0.05,0.1"),
    key(
        "train",
        "posthoc_ema_interval",
        "steps between snapshots of the EMAs of --posthoc-ema; 0: a 64th of the steps",
    ),
    key("train", "grad_clip", "clip the gradient to this norm; 0: no clipping"),
    key(
        "train",
        "gradient_penalty",
        "weight of a penalty on the network's gradient by its input (an ablation); 0: none",
    ),
    key("train", "label_dropout", "probability of dropping an image's label, for classifier-free guidance; 0: never"),
    key("train", "fp16_scale_growth", "growth per step of log2 of the loss scale (--precision f16)"),
    key("train", "schedule_sampler", "how training timesteps are drawn: uniform, loss-second-moment, antithetic"),
    key("train", "seed", "seed of all random numbers in training"),
    key("train", "log_interval", "steps between lines in the logs"),
    key("train", "eval_interval", "steps between evaluations of a classifier on --val-data-dir"),
    key("train", "save_interval", "steps between checkpoints; 0: only one at the end"),
    key("train", "keep_checkpoints", "number of newest checkpoints to keep; 0: all"),
    key("train", "grid_interval", "steps between sample grids; 0: only one at the end"),
    key("train", "grid_images", "images in a sample grid; 0: no grids"),
    key("train", "grid_steps", "UniPC steps for grids; 0: sample as [sample] says; unset: 20 unless [sample] sets any"),
    key(
        "sample",
        "sampler",
        "sampler: ddpm, ddim, dpm-solver++, dpm-solver++-sde, unipc, heun (2 network calls a step)",
    ),
    key("sample", "timestep_respacing", "timesteps to sample at, as in 250, ddim50, quad50 or 10,15,20; empty: all"),
    key("sample", "spacing", "spacing of a given number of timesteps: uniform, quadratic, log-snr, karras"),
    key("sample", "rounded_timesteps", "give the network only whole timesteps, as other programs do"),
    key("sample", "eta", "DDIM's eta: 0 deterministic, 1 as random as DDPM"),
    key("sample", "churn", "Heun's S_churn, noise added before steps; 0: deterministic"),
    key("sample", "churn_min", "Heun's S_tmin, the lowest noise level sigma/alpha with --churn"),
    key("sample", "churn_max", "Heun's S_tmax, the highest noise level sigma/alpha with --churn; 0: no limit"),
    key("sample", "clip_denoised", "clip predicted images to [-1, 1] at every step"),
    key(
        "sample",
        "dynamic_threshold",
        "dynamic thresholding at this quantile of an image's values, as in 0.995; 0: off",
    ),
    key("sample", "correct", "exposure bias correction, as in es:1.01; may be repeated (`sample --help` lists all)"),
    key("sample", "classifier_scale", "scale of the classifier's gradient in classifier guidance"),
    key(
        "sample",
        "guidance_scale",
        "guidance scale w, away from the unlabelled network or --guide-with; 1: no guidance",
    ),
    key("sample", "guidance_interval", "range of noise levels sigma/alpha with guidance, as in 0.2,5; empty: all"),
    key("sample", "num_samples", "number of images to draw"),
    key("sample", "batch_size", "images drawn at once; changes them at most by rounding"),
    key("sample", "network", "which network of another program's file, where it holds several; empty: the EMA"),
    key("sample", "seed", "seed of the noise; image i depends only on the seed and on i"),
    key("evaluation", "interval", "steps between evaluations, with one more at the end; 0: no evaluations"),
    key("evaluation", "images", "images drawn for each evaluation"),
    key(
        "evaluation",
        "reference",
        "real images or statistics to compare with, as in `evaluate`; empty: training images",
    ),
    key("evaluation", "features", "feature network, as in `evaluate`; empty: the one that fits the images"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_keys_are_those_of_the_configuration() {
        let table: toml::Table = Config::default().to_toml().parse().unwrap();
        let of_config: Vec<String> = table
            .iter()
            .flat_map(|(section, keys)| keys.as_table().unwrap().keys().map(move |key| format!("{section}.{key}")))
            .collect();
        let listed: Vec<String> = KEYS.iter().map(Key::path).collect();
        assert_eq!(listed, of_config);
    }
}
