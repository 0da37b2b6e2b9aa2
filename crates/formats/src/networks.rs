//! The networks of a checkpoint file, found where people put them and without what wraps them.

/// A network of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Network<T> {
    /// The names that lead to it, with dots between them; empty where none do.
    pub name: String,
    /// Its tensors by name.
    pub tensors: Vec<(String, T)>,
}

/// What torch.compile, FSDP, activation checkpointing and Lightning's Fabric write anywhere in a name.
const WRAPPERS: [&str; 4] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"];

/// What `DataParallel` and `AveragedModel` write before every name. It says nothing of what they wrap.
const MODULE: &str = "module";

/// What people call a network in whose module or file it lies. Averages are told by parts of their names.
const CALLED: [&str; 20] = [
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "network",
    "unet",
    "params",
    "online",
    "online_model",
    "denoiser",
    "denoise_fn",
    "diffusion",
    "diffusion_model",
    "score_model",
    "eps_model",
    "student",
    "teacher",
    "generator",
    "G",
    MODULE,
];

/// Names in names that are looked into.
const DEEPEST: usize = 4;

/// Whether a name is that of an average.
pub(crate) fn is_average(name: &str) -> bool {
    let parts = ["ema", "swa", "avg", "average", "averaged", "shadow"];
    name.split(['.', '_']).any(|part| parts.contains(&part.to_ascii_lowercase().as_str()))
}

/// A name inside another.
pub(crate) fn below(name: &str, part: &str) -> String {
    if name.is_empty() { part.into() } else { format!("{name}.{part}") }
}

/// The networks among the tensors of a dictionary or file of that name, averages first. Where only some tensors lie in
/// modules that are called like networks, all together are a network, too, and come first. Tensors beside such modules,
/// as of schedules and counters, belong to no network.
pub fn split<T: Clone>(name: &str, mut tensors: Vec<(String, T)>) -> Vec<Network<T>> {
    for (name, _) in &mut tensors {
        if WRAPPERS.iter().any(|wrapper| name.contains(wrapper)) {
            *name = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".");
        }
    }
    let mut found = Vec::new();
    split_below(name, tensors, DEEPEST, &mut found);
    found
}

fn split_below<T: Clone>(name: &str, tensors: Vec<(String, T)>, depth: usize, found: &mut Vec<Network<T>>) {
    let is_called = |word: &str| CALLED.contains(&word) || is_average(word);
    let first = |name: &str| name.split_once('.').map(|(word, _)| word.to_string());
    let mut words: Vec<String> = Vec::new();
    let mut all = true;
    for word in tensors.iter().filter_map(|(name, _)| first(name)) {
        match is_called(&word) {
            true if words.contains(&word) => {}
            true => words.push(word),
            false => all = false,
        }
    }
    if words.is_empty() || depth == 0 {
        found.push(Network { name: name.into(), tensors });
        return;
    }
    if !all {
        found.push(Network { name: name.into(), tensors: tensors.clone() });
    }
    words.sort_by_key(|word| !is_average(word));
    for word in words {
        let inside = |(name, tensor): &(String, T)| {
            Some((name.strip_prefix(&word)?.strip_prefix('.')?.to_string(), tensor.clone()))
        };
        let name = if word == MODULE { name.to_string() } else { below(name, &word) };
        split_below(&name, tensors.iter().filter_map(inside).collect(), depth - 1, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the networks found among tensors, and of their tensors.
    fn found(names: &[&str]) -> Vec<String> {
        let networks = split("", names.iter().map(|name| (name.to_string(), ())).collect());
        let tensors =
            |network: &Network<()>| network.tensors.iter().map(|(n, ())| n.as_str()).collect::<Vec<_>>().join(" ");
        networks.iter().map(|network| format!("{}: {}", network.name, tensors(network))).collect()
    }

    #[test]
    fn wrappers_come_off_in_any_order() {
        assert_eq!(found(&["in.w", "out.b"]), [": in.w out.b"]);
        assert_eq!(found(&["_orig_mod.in.w", "_orig_mod.out.b"]), [": in.w out.b"]);
        assert_eq!(found(&["module._orig_mod.in.w", "module._orig_mod.out.b"]), [": in.w out.b"]);
        assert_eq!(found(&["_orig_mod.module.in.w"]), [": in.w"]);
        assert_eq!(found(&["_fsdp_wrapped_module.in._fsdp_wrapped_module.w"]), [": in.w"]);
        assert_eq!(found(&["in._checkpoint_wrapped_module.w"]), [": in.w"]);
        assert_eq!(found(&["model.module.net.in.w", "model.module.net.out.b"]), ["model.net: in.w out.b"]);
        assert_eq!(found(&["n_averaged", "module.in.w"]), [": in.w"]);
    }

    #[test]
    fn several_networks_are_told_apart() {
        let both = ["online_model.in.w", "ema_model.in.w", "step"];
        assert_eq!(found(&both), ["ema_model: in.w", "online_model: in.w"]);
        assert_eq!(found(&["model.in.w", "model_ema.in.w", "betas"]), ["model_ema: in.w", "model: in.w"]);
        // A part of a network may be called like one.
        assert_eq!(found(&["net.w", "out.b"]), [": net.w out.b", "net: w"]);
        assert_eq!(found(&["model.in.w", "loss_fn.lpips.w"]), [": model.in.w loss_fn.lpips.w", "model: in.w"]);
    }

    #[test]
    fn averages_are_told_by_parts_of_names() {
        for name in ["ema", "model_ema", "ema_model", "G_ema", "ema.model", "params_ema", "averaged_model", "EMA"] {
            assert!(is_average(name), "{name}");
        }
        assert!(!is_average("schema") && !is_average("emanet") && !is_average("model"));
    }
}
