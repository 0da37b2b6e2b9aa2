//! Kinds of GPUs that need not be there: cuDNN plans for one by its description.

use crate::cudnn::{Convolution, Pass, Planned, Planner};
use crate::driver::dotted;
use crate::error::{Error, Result};
use crate::library;
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

/// What cuDNN asks of a kind of GPU, from NVIDIA's data sheets and the table of compute capabilities in the CUDA programming
/// guide. Clocks are in MHz, memory in GiB.
struct Description {
    name: &'static str,
    full_name: &'static str,
    /// Compute capability.
    capability: [u32; 2],
    multiprocessors: u32,
    /// Bytes of shared memory that a block may ask for.
    shared: u32,
    /// Blocks and threads of a multiprocessor.
    resident: [u32; 2],
    memory: usize,
    /// Of the multiprocessors and of the memory.
    clocks: [u32; 2],
    /// Bits of the memory's bus.
    bus: u32,
    /// MiB of the second-level cache.
    cache: f64,
}

const KNOWN: [Description; 7] = [
    Description {
        name: "a100",
        full_name: "NVIDIA A100-SXM4-80GB",
        capability: [8, 0],
        multiprocessors: 108,
        shared: 166_912,
        resident: [32, 2048],
        memory: 80,
        clocks: [1410, 1593],
        bus: 5120,
        cache: 40.0,
    },
    Description {
        name: "rtx3090",
        full_name: "NVIDIA GeForce RTX 3090",
        capability: [8, 6],
        multiprocessors: 82,
        shared: 101_376,
        resident: [16, 1536],
        memory: 24,
        clocks: [1695, 9751],
        bus: 384,
        cache: 6.0,
    },
    Description {
        name: "rtx4090",
        full_name: "NVIDIA GeForce RTX 4090",
        capability: [8, 9],
        multiprocessors: 128,
        shared: 101_376,
        resident: [24, 1536],
        memory: 24,
        clocks: [2520, 10_501],
        bus: 384,
        cache: 72.0,
    },
    Description {
        name: "h100",
        full_name: "NVIDIA H100 80GB HBM3",
        capability: [9, 0],
        multiprocessors: 132,
        shared: 232_448,
        resident: [32, 2048],
        memory: 80,
        clocks: [1980, 2619],
        bus: 5120,
        cache: 50.0,
    },
    Description {
        name: "h200",
        full_name: "NVIDIA H200",
        capability: [9, 0],
        multiprocessors: 132,
        shared: 232_448,
        resident: [32, 2048],
        memory: 141,
        clocks: [1980, 3201],
        bus: 6144,
        cache: 60.0,
    },
    Description {
        name: "b200",
        full_name: "NVIDIA B200",
        capability: [10, 0],
        multiprocessors: 148,
        shared: 232_448,
        resident: [32, 2048],
        memory: 180,
        clocks: [1965, 3996],
        bus: 8192,
        cache: 126.5,
    },
    Description {
        name: "rtx5090",
        full_name: "NVIDIA GeForce RTX 5090",
        capability: [12, 0],
        multiprocessors: 170,
        shared: 101_376,
        resident: [24, 1536],
        memory: 32,
        clocks: [2407, 14_001],
        bus: 512,
        cache: 96.0,
    },
];

impl Description {
    fn bytes(&self) -> usize {
        self.memory << 30
    }

    /// As the JSON of cuDNN's descriptor of a device, with a driver that serves that version of CUDA.
    fn json(&self, cuda: usize) -> String {
        let Self { full_name, capability: [major, minor], multiprocessors, shared, bus, .. } = self;
        let ([blocks, threads], [clock, memory_clock]) = (self.resident, self.clocks);
        let (version, cache, bytes) = (100 * major + 10 * minor, (self.cache * 1048576.0) as usize, self.bytes());
        format!(
            r#"{{"deviceName": "{full_name}", "deviceVer": {version}, "driverVer": {cuda}, "cudaDeviceId": 0, "pciDeviceId": 0,
"isTccDriver": 0, "supportCoopLaunch": 1, "warpSize": 32, "maxGridSize": [2147483647, 65535, 65535],
"maxBlockSize": [1024, 1024, 64], "maxThreadsPerBlock": 1024, "maxThreadsPerSM": {threads}, "maxCtasPerSM": {blocks},
"multiProcessorCount": {multiprocessors}, "smCountOrigin": 0, "regsPerBlock": 65536, "maxRegistersPerSM": 65536,
"maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": {shared}, "reservedSharedMemoryPerBlock": 1024,
"oversizedSharedMemoryPerBlock": 0, "totalGlobalMem": {bytes}, "smClockRateKHz": {clock}000,
"memClockRateKHz": {memory_clock}000, "memoryBusWidth": {bus}, "l2CacheSize": {cache}}}"#
        )
    }
}

/// A kind of GPU that need not be there. Convolutions are planned for it as they are on a GPU of its kind; nothing can run.
pub struct Chip {
    description: &'static Description,
    /// cuDNN's version.
    version: String,
    planner: Mutex<Planner>,
    /// What is known already: networks repeat their layers.
    planned: Mutex<HashMap<(Convolution, Pass), Result<Planned>>>,
}

impl std::fmt::Debug for Chip {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for Chip {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Chip {}

impl Chip {
    /// The names that are known: `a100`, `h100` and so on.
    pub fn names() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().map(|chip| chip.name)
    }

    /// The chip of that name, if it is known.
    ///
    /// # Errors
    /// No cuDNN or what belongs to it, a cuDNN older than 9.8, or no library of the driver's to be loaded, which cuDNN's are
    /// linked to; a GPU is not needed.
    pub fn get(name: &str) -> Option<Result<&'static Self>> {
        static ALL: [OnceLock<Result<Chip>>; KNOWN.len()] = [const { OnceLock::new() }; KNOWN.len()];
        let place = KNOWN.iter().position(|chip| chip.name == name)?;
        Some(ALL[place].get_or_init(|| Self::open(&KNOWN[place])).as_ref().map_err(Clone::clone))
    }

    fn open(description: &'static Description) -> Result<Self> {
        let cudnn = &library::set_to_plan()?.cudnn.functions;
        let (version, cuda) = (dotted(cudnn.versions().0), cudnn.versions().1);
        let planner = Mutex::new(Planner::for_chip(cudnn, &description.json(cuda))?);
        Ok(Self { description, version, planner, planned: Mutex::default() })
    }

    /// Its short name.
    pub fn name(&self) -> &'static str {
        self.description.name
    }

    /// What NVIDIA calls it.
    pub fn full_name(&self) -> &'static str {
        self.description.full_name
    }

    /// Bytes of its memory.
    pub fn memory(&self) -> usize {
        self.description.bytes()
    }

    /// The version of the cuDNN that plans.
    pub fn cudnn(&self) -> &str {
        &self.version
    }

    /// The engine that a GPU of this kind takes for a convolution.
    ///
    /// # Errors
    /// [`Error::NoEngine`].
    pub fn convolution(&self, c: &Convolution, pass: Pass) -> Result<Planned> {
        let mut known = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let planner = self.planner.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry((*c, pass)).or_insert_with(|| planner.first(c, pass).map(|plan| plan.planned)).clone()
    }

    /// What is said where something should run on it.
    pub fn absent(&self) -> Error {
        Error::Absent { name: self.name() }
    }
}
