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
    key("model", "arch", "which network: adm, superres, classifier, ddim"),
    key("model", "image_size", "side of the square images, in pixels"),
    key("model", "small_size", "side of the images that a super-resolution network enlarges, in pixels"),
    key("model", "in_channels", "channels of the images: 1 grey, 3 colour"),
    key("model", "num_channels", "channels at multiplier 1"),
    key("model", "num_res_blocks", "residual blocks per level"),
    key("model", "channel_mult", "multiplier of each level, as in 1,2,2; empty: by image size"),
    key("model", "attention_resolutions", "image sizes with attention, as in 16,8"),
    key("model", "num_heads", "attention heads, unless --num-head-channels is given"),
    key("model", "num_head_channels", "channels per attention head; -1: count heads"),
    key("model", "num_heads_upsample", "attention heads on the way up; -1: as on the way down"),
    key("model", "dropout", "dropout probability in residual blocks"),
    key("model", "class_cond", "give the network class labels"),
    key("model", "num_classes", "number of classes; 0: as in the data"),
    key("model", "use_scale_shift_norm", "the time embedding scales and shifts, not only shifts"),
    key("model", "resblock_updown", "residual blocks resample, not plain layers"),
    key("model", "conv_resample", "plain resampling layers have a convolution"),
    key("model", "use_new_attention_order", "split queries, keys and values before the heads"),
    key("model", "precision", "of activations and products: f32, bf16, f16, auto (bf16 on a GPU); all else is f32"),
    key("model", "use_checkpoint", "compute blocks again in the backward pass: less memory, more time"),
    key("classifier", "width", "channels of the classifier at multiplier 1"),
    key("classifier", "depth", "its residual blocks per level"),
    key("classifier", "channel_mult", "its multiplier of each level; empty: by image size"),
    key("classifier", "attention_resolutions", "image sizes at which it has attention"),
    key("classifier", "num_head_channels", "its channels per attention head"),
    key("classifier", "use_scale_shift_norm", "its time embedding scales and shifts, not only shifts"),
    key("classifier", "resblock_updown", "its residual blocks resample, not plain layers"),
    key("classifier", "pool", "its head: attention, adaptive, spatial, spatial_v2"),
    key("classifier", "num_classes", "its number of classes; 0: as in the data"),
    key("classifier", "precision", "of its activations and matrix products: f32, bf16, f16 or auto"),
    key("classifier", "noised", "train the classifier on noised images"),
    key("diffusion", "diffusion_steps", "number of diffusion steps T"),
    key("diffusion", "noise_schedule", "how the noise grows: linear, cosine"),
    key("diffusion", "timestep_respacing", "timesteps kept, as in 250, ddim50 or 10,15,20; empty: all"),
    key("diffusion", "prediction", "what the network predicts: epsilon, x-start, previous-x"),
    key("diffusion", "variance", "of the reverse steps: fixed-small, fixed-large, learned, learned-range"),
    key("diffusion", "loss", "what is minimised: mse, rescaled-mse, sum-mse, kl, rescaled-kl"),
    key("diffusion", "rescale_timesteps", "show the network times scaled to 0 … 1000"),
    key("perturbation", "mode", "form of input perturbation: sampled, equivalent, target-scaled"),
    key("perturbation", "gamma", "strength of input perturbation; 0: none"),
    key("perturbation", "gamma_start", "strength at t = 0 where it varies with t"),
    key(
        "perturbation",
        "strength",
        "how gamma varies: constant, linear, cosine (in t), uniform, switched (by image), decay",
    ),
    key("perturbation", "cutoff", "no perturbation beyond this share of the timesteps (linear, cosine)"),
    key("perturbation", "decay_steps", "training steps until gamma is 0 (decay)"),
    key("perturbation", "probability", "probability that an image is perturbed, else not at all (switched)"),
    key("perturbation", "scaled", "gamma in units of the noise level; false: as it is, at any level"),
    key("data", "data_dir", "digits (embedded), a folder of images, an .npz, .npy or IDX file, or its folder"),
    key("data", "val_data_dir", "images on which a classifier is tried out every --eval-interval steps"),
    key("data", "labels", "a folder's classes: prefix (file name up to _), folder, none; auto: prefix if needed"),
    key("data", "fit", "how other sizes are fitted: crop, pad"),
    key("data", "allow_upscale", "enlarge images smaller than --image-size"),
    key("data", "random_crop", "crop at random, not in the centre"),
    key("data", "random_flip", "mirror each image with probability 1/2"),
    key("data", "on_bad_image", "images that cannot be read: fail, skip"),
    key("data", "exif_rotate", "turn images as their EXIF data says; the reference ignores it"),
    key("data", "workers", "threads that decode ahead of the training"),
    key("classes", "names", "names of the classes, class 0 first; training keeps them where the images tell"),
    key("classes", "untrained", "classes without images, which the network has not learned; training keeps them"),
    key("train", "steps", "optimizer steps to train for; 0: no limit; replaces a preset's duration"),
    key("train", "duration", "time to train for, such as 20m or 2h; empty: no limit; replaces a preset's steps"),
    key("train", "init_from", "begin with the parameters of any checkpoint (fine-tuning)"),
    key("train", "resume_checkpoint", "go on from the reference's model*.pt with its ema_*.pt and opt*.pt"),
    key("train", "batch_size", "images per optimizer step"),
    key("train", "microbatch", "images per forward pass; -1: the whole batch"),
    key("train", "lr", "learning rate"),
    key("train", "weight_decay", "decoupled weight decay"),
    key("train", "adam_betas", "decay rates of AdamW's moments"),
    key("train", "adam_eps", "AdamW's epsilon"),
    key("train", "lr_warmup_steps", "steps over which the learning rate rises from 0"),
    key("train", "lr_anneal_steps", "steps over which it falls to 0, which ends the run; 0: constant"),
    key("train", "ema_rate", "rates of the weight averages, as in 0.999,0.9999"),
    key("train", "ema_warmup", "averages follow the weights more closely at first, for short runs"),
    key("train", "posthoc_ema", "also keep averages of these lengths, from which `ema` makes others; alone: 0.05,0.1"),
    key("train", "posthoc_ema_interval", "steps between savings of these; 0: a 64th of the steps"),
    key("train", "grad_clip", "largest norm of the gradient; 0: no limit"),
    key("train", "gradient_penalty", "weight of the network's squared slope, an ablation; 0: none"),
    key(
        "train",
        "label_dropout",
        "probability that an image's class is not told, for --guidance-scale; 0: always told",
    ),
    key("train", "fp16_scale_growth", "growth per step of the loss scale's logarithm, in f16"),
    key("train", "schedule_sampler", "how timesteps are drawn: uniform, loss-second-moment, antithetic"),
    key("train", "seed", "seed of everything random in training"),
    key("train", "log_interval", "steps between lines in the logs"),
    key("train", "eval_interval", "steps between trials of a classifier on --val-data-dir"),
    key("train", "save_interval", "steps between checkpoints; 0: the last alone"),
    key("train", "keep_checkpoints", "checkpoints kept, newest first; 0: all"),
    key("train", "grid_interval", "steps between sample grids; 0: the last alone"),
    key("train", "grid_images", "images in a sample grid; 0: no grids"),
    key("train", "grid_steps", "steps of UniPC for grids; 0: as [sample]; 20 where sampler and steps are not set"),
    key("sample", "sampler", "ddpm, ddim, dpm-solver++, dpm-solver++-sde, unipc, heun (two network calls a step)"),
    key("sample", "timestep_respacing", "timesteps used, as in 250, ddim50, quad50 or 10,15,20; empty: all"),
    key("sample", "spacing", "of a plain number of timesteps: uniform, quadratic, log-snr, karras"),
    key("sample", "rounded_timesteps", "tell the network whole timesteps alone, as other programs do"),
    key("sample", "eta", "DDIM's eta: 0 deterministic, 1 as random as DDPM"),
    key("sample", "churn", "Heun's S_churn, noise added before steps; 0 deterministic"),
    key("sample", "churn_min", "least noise sigma/alpha at which it churns (S_tmin)"),
    key("sample", "churn_max", "most noise sigma/alpha at which it churns (S_tmax); 0: no limit"),
    key("sample", "clip_denoised", "clip predicted images to [-1, 1] at every step"),
    key("sample", "dynamic_threshold", "clip to this share of an image's values, and scale back, as in 0.995; 0: off"),
    key("sample", "correct", "correction of exposure bias as NAME:VALUES, any number of them (see `sample --help`)"),
    key("sample", "classifier_scale", "what a classifier's gradient is multiplied by"),
    key("sample", "guidance_scale", "w of guidance, away from no class or from --guide-with; 1: none"),
    key("sample", "guidance_interval", "noise sigma/alpha at which guidance acts, as in 0.2,5; empty: all"),
    key("sample", "num_samples", "images to draw"),
    key("sample", "batch_size", "images drawn together; does not change them"),
    key("sample", "network", "which network, where a file of another program holds several; empty: the average"),
    key("sample", "seed", "image i depends on the seed and i alone"),
    key("evaluation", "interval", "steps between evaluations, and one at the end; 0: none"),
    key("evaluation", "images", "images drawn for each"),
    key("evaluation", "reference", "what they are compared with, as `evaluate` takes it; empty: the training images"),
    key("evaluation", "features", "by which network, as `evaluate` takes it; empty: the one that fits the images"),
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
