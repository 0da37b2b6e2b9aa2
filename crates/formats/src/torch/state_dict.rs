//! A network's tensors, wherever people put them.

use super::Fault;
use super::tensor::Tensor;
use super::value::Value;
use std::collections::HashSet;

/// Under what names a checkpoint may hold its network, the first one found.
const KEYS: [&str; 6] = ["state_dict", "model", "model_state_dict", "ema", "params_ema", "net"];

/// Dictionaries in dictionaries that are looked into. Values may contain themselves.
const DEEPEST: usize = 3;

/// Prefix of the names that `DataParallel` saves.
const WRAPPED: &str = "module.";

/// Finds the tensors of a checkpoint.
pub(super) fn parameters(root: Value) -> Result<Vec<(String, Tensor)>, Fault> {
    let entries = find(root, DEEPEST).and_then(Value::entries).ok_or_else(|| otherwise(root))?;
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for (key, value) in entries {
        let (Some(name), Some(tensor)) = (key.name(), value.tensor()) else { continue };
        if !seen.insert(name.clone()) {
            return Err(format!("has the tensor `{name}` twice"));
        }
        found.push((name, tensor.clone()));
    }
    if found.iter().all(|(name, _)| name.starts_with(WRAPPED)) {
        for (name, _) in &mut found {
            name.drain(..WRAPPED.len());
        }
    }
    Ok(found)
}

/// The dictionary that holds tensors by name.
fn find(value: Value, depth: usize) -> Option<Value> {
    let below = || KEYS.iter().filter(|_| depth > 0).find_map(|key| find(value.get(key)?, depth - 1));
    if let Some(mut entries) = value.entries() {
        let named = |(key, value): (Value, Value)| key.name().is_some() && value.tensor().is_some();
        return below().or_else(|| entries.any(named).then_some(value));
    }
    let mut items = value.items().filter(|_| depth > 0)?;
    let (first, last) = (items.next(), items.next_back());
    [last, first].into_iter().flatten().find_map(|item| find(item, depth - 1))
}

/// What a file is that has no named tensors.
fn otherwise(root: Value) -> Fault {
    if root.get("param_groups").is_some() {
        return "holds an optimizer's state and no network: name the model's file".into();
    }
    match root.class() {
        Some(class) if root.state().is_some_and(|state| state.get("_modules").is_some()) => {
            format!("holds a whole {class}: in PyTorch, save its state_dict() instead")
        }
        _ => format!("holds {} and no network: a dictionary of named tensors is needed", root.describe()),
    }
}

#[cfg(test)]
mod tests {
    use crate::torch::tests::{pickle, tensor};

    /// Names of what is found in a pickle; each `@` of it becomes a tensor.
    fn names(text: &str) -> Result<Vec<String>, String> {
        let read = pickle(text.replace('@', &tensor("1", "0", "1", "1")).as_bytes())?;
        Ok(super::parameters(read.value())?.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn networks_are_found_where_people_put_them() {
        assert_eq!(names("}Va\n@sVb\n@sVsteps\nI3\ns.").unwrap(), ["a", "b"]);
        assert_eq!(names("}Vmodule.a\n@sVmodule.b\n@s.").unwrap(), ["a", "b"]);
        assert_eq!(names("}Vmodule.a\n@sVb\n@s.").unwrap(), ["module.a", "b"]);
        for key in super::KEYS {
            assert_eq!(names(&format!("}}Vother\n@sV{key}\n}}Va\n@ss.")).unwrap(), ["a"]);
        }
        assert_eq!(names("}Vmodel\n}Vstate_dict\n}Va\n@sss.").unwrap(), ["a"]);
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
