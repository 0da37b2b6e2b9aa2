//! A network's tensors, wherever people put them.

use super::Fault;
use super::tensor::Tensor;
use super::value::{Id, Value};
use crate::networks::{self, Network};
use std::collections::HashSet;

/// Dictionaries and lists in each other that are looked into.
const DEEPEST: usize = 4;

/// Named tensors of a dictionary.
struct Found<'a> {
    name: String,
    tensors: Vec<(String, &'a Tensor)>,
    is_average: bool,
}

/// Finds the networks of a checkpoint, at least one. Averages come first, then those in dictionaries of the file, then
/// tensors of the file itself.
pub(super) fn networks(root: Value) -> Result<Vec<Network<Tensor>>, Fault> {
    let mut found = Vec::new();
    walk(root, String::new(), false, DEEPEST, &mut HashSet::new(), &mut found);
    found.sort_by_key(|found| (!found.is_average, found.name.is_empty()));
    let mut all = Vec::new();
    for Found { name, tensors, .. } in found {
        for Network { name, tensors } in networks::split(&name, tensors) {
            let mut seen = HashSet::new();
            if let Some((twice, _)) = tensors.iter().find(|(name, _)| !seen.insert(name.as_str())) {
                return Err(format!("has the tensor `{twice}` twice"));
            }
            let tensors = tensors.into_iter().map(|(name, tensor)| (name, tensor.clone())).collect();
            all.push(Network { name, tensors });
        }
    }
    if all.is_empty() { Err(otherwise(root)) } else { Ok(all) }
}

/// Each dictionary is entered once: values may contain themselves and share parts.
fn walk<'a>(
    value: Value<'a>,
    name: String,
    is_last: bool,
    depth: usize,
    seen: &mut HashSet<Id>,
    found: &mut Vec<Found<'a>>,
) {
    let is_optimizer = || value.get("param_groups").is_some();
    if depth == 0 || !seen.insert(value.id()) || is_optimizer() {
        return;
    }
    if let Some(entries) = value.entries() {
        let named: Vec<(String, Value)> = entries.filter_map(|(key, value)| Some((key.name()?, value))).collect();
        let tensors: Vec<_> = named.iter().filter_map(|(key, value)| Some((key.clone(), value.tensor()?))).collect();
        if !tensors.is_empty() {
            // The last of a list is the average in the files of ermongroup/ddim.
            let is_average = is_last || networks::is_average(&name);
            found.push(Found { name: name.clone(), tensors, is_average });
        }
        for (key, value) in named {
            walk(value, networks::below(&name, &key), false, depth - 1, seen, found);
        }
    } else if let Some(items) = value.items() {
        let count = items.len();
        for (i, item) in items.enumerate() {
            walk(item, format!("{name}[{i}]"), i > 0 && i + 1 == count, depth - 1, seen, found);
        }
    }
}

/// What a file is that has no named tensors.
fn otherwise(root: Value) -> Fault {
    if root.get("param_groups").is_some() {
        return "holds an optimizer's state and no network: name the file of the model".into();
    }
    match root.class() {
        Some(class) if class.starts_with("__torch__") => {
            "is a TorchScript module: in PyTorch, `torch.save(torch.jit.load(FILE).state_dict(), 'model.pt')`".into()
        }
        Some(class) if root.state().is_some_and(|state| state.get("_modules").is_some()) => {
            format!("holds a whole {class}: in PyTorch, save its state_dict() instead")
        }
        _ => format!("holds {} and no network: a dictionary of named tensors (state_dict) is needed", root.describe()),
    }
}

#[cfg(test)]
mod tests {
    use crate::torch::tests::{pickle, tensor};

    /// Names of what is found in a pickle; each `@` of it becomes a tensor.
    fn names(text: &str) -> Result<Vec<String>, String> {
        let read = pickle(text.replace('@', &tensor("1", "0", "1", "1")).as_bytes())?;
        Ok(super::networks(read.value())?.remove(0).tensors.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn networks_are_found_where_people_put_them() {
        assert_eq!(names("}Va\n@sVb\n@sVsteps\nI3\ns.").unwrap(), ["a", "b"]);
        assert_eq!(names("}Vmodule.a\n@sVmodule.b\n@s.").unwrap(), ["a", "b"]);
        assert_eq!(names("}Vmodule.a\n@sVout.b\n@s.").unwrap(), ["module.a", "out.b"]);
        for key in ["state_dict", "model", "model_state_dict", "ema", "params_ema", "net", "my_own"] {
            assert_eq!(names(&format!("}}Vother\n@sV{key}\n}}Va\n@ss.")).unwrap(), ["a"]);
        }
        assert_eq!(names("}Vmodel\n}Vstate_dict\n}Va\n@sss.").unwrap(), ["a"]);
    }

    #[test]
    fn averages_come_first_and_optimizers_never() {
        let two = "}Vmodel\n}Va\n@ssVema\n}Vb\n@ss.";
        assert_eq!(names(two).unwrap(), ["b"]);
        let optimizer = "}Voptimizer\n}Vparam_groups\n]sVema\n@ssVmodel\n}Va\n@ss.";
        assert_eq!(names(optimizer).unwrap(), ["a"]);
        // Lightning's, with what a loss function adds.
        let lightning = "}Vstate_dict\n}Vmodel.in.w\n@sVmodel.out.w\n@ss.";
        assert_eq!(names(lightning).unwrap(), ["in.w", "out.w"]);
    }

    #[test]
    fn a_lists_last_dictionary_is_the_average() {
        assert_eq!(names("](}Va\n@sI1\n}Vema\n@se.").unwrap(), ["ema"]);
        assert_eq!(names("](}Va\n@sI1\nI2\ne.").unwrap(), ["a"]);
        assert_eq!(names("](}Va\n@se.").unwrap(), ["a"]);
    }

    #[test]
    fn what_is_no_network_is_named() {
        let error = |text| names(text).unwrap_err();
        assert!(error("}Va\n@sVa\n@s.").contains("`a` twice"));
        assert!(error("}Vparam_groups\n]sVstate\n}s.").contains("optimizer's state"));
        assert!(error("}Vlr\nI1\ns.").contains("a dictionary (`lr`)"));
        assert!(error("I1\n.").contains("a number"));
        let module = "(imy\nNet\n}V_modules\n}sb.";
        assert!(error(module).contains("state_dict()"));
    }
}
