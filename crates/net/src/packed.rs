//! Weights as the processor's convolutions read them: made once for all runs between two changes of the parameters.

use bytemuck::{cast_slice, cast_slice_mut};
use ddpm_kernels::conv::{self, Geometry};
use ddpm_kernels::{CacheLine, Element};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The place of a layer's parameters, how it is computed (for any number of images), and bytes of a value.
type Key = (usize, Geometry, usize);

/// The packed weights of layers.
#[derive(Debug, Default)]
pub(crate) struct PackedWeights(Mutex<HashMap<Key, Arc<Vec<CacheLine>>>>);

impl PackedWeights {
    /// Forgets all, because the parameters change.
    pub(crate) fn clear(&mut self) {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Runs `work` with the packed weights of the layer at a place, made from `weight` if they are not there.
    pub(crate) fn with<'a, E: Element, R>(
        &self,
        place: usize,
        g: Geometry,
        weight: impl FnOnce() -> Cow<'a, [f32]>,
        work: impl FnOnce(&[E]) -> R,
    ) -> R {
        let key = (place, Geometry { n: 0, ..g }, size_of::<E>());
        let all = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all().get(&key).cloned();
        let packed = known.unwrap_or_else(|| {
            // Not under the lock: the threads that pack may turn to a piece of work that asks for it.
            let mut memory = vec![CacheLine::default(); lines::<E>(g)];
            conv::pack(g, &weight(), values_mut::<E>(g, &mut memory));
            Arc::clone(all().entry(key).or_insert_with(|| Arc::new(memory)))
        });
        work(&cast_slice(&packed)[..g.packed_len::<E>()])
    }
}

impl Clone for PackedWeights {
    /// None: they are made again when they are asked for.
    fn clone(&self) -> Self {
        Self::default()
    }
}

fn values_mut<E: Element>(g: Geometry, memory: &mut [CacheLine]) -> &mut [E] {
    &mut cast_slice_mut(memory)[..g.packed_len::<E>()]
}

fn lines<E: Element>(g: Geometry) -> usize {
    (g.packed_len::<E>() * size_of::<E>()).div_ceil(size_of::<CacheLine>())
}

/// Whether a layer's packed weights are worth their memory: if they take less than the parameters. Those of f32 never do: in Winograd's larger
/// tile they take four times as much, for a few per cent of the time.
pub(crate) fn is_kept<E: Element>(g: Geometry) -> bool {
    g.packed_len::<E>() * size_of::<E>() < g.weight_len() * size_of::<f32>()
}

/// Bytes of a layer's packed weights, if they are kept.
pub(crate) fn bytes<E: Element>(g: Geometry) -> usize {
    if is_kept::<E>(g) { lines::<E>(g) * size_of::<CacheLine>() } else { 0 }
}
