//! The functions of NVIDIA's libraries that are called, as C declares them.
//!
//! Enumerations are plain integers: a newer library may answer with a number that today's headers lack.

#![allow(unsafe_code, reason = "functions of C")]

use libloading::Library;
use std::ffi::{c_char, c_int, c_uint, c_void};

/// A handle or a pointer of a library.
pub(crate) type Handle = *mut c_void;

/// A library's functions, each looked up when it is loaded.
macro_rules! functions {
    ($(#[$doc:meta])* $name:ident { $(fn $function:ident($($argument:ty),*) -> $result:ty;)* }) => {
        $(#[$doc])*
        #[allow(non_snake_case, reason = "the library's names")]
        pub(crate) struct $name {
            $(pub(crate) $function: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// Keeps the functions there.
            _library: Library,
        }

        impl $name {
            /// Looks the functions up; the error names the first that is missing.
            pub(crate) fn new(library: Library) -> Result<Self, String> {
                // SAFETY: the declarations are those of the library's headers.
                unsafe {
                    Ok(Self {
                        $($function: *library
                            .get(concat!(stringify!($function), "\0"))
                            .map_err(|_| format!("it has no function {}", stringify!($function)))?,)*
                        _library: library,
                    })
                }
            }
        }
    };
}

functions! {
    /// The driver, `libcuda.so.1`.
    Driver {
        fn cuInit(c_uint) -> c_int;
        fn cuDriverGetVersion(*mut c_int) -> c_int;
        fn cuGetErrorName(c_int, *mut *const c_char) -> c_int;
        fn cuGetErrorString(c_int, *mut *const c_char) -> c_int;
        fn cuDeviceGetCount(*mut c_int) -> c_int;
        fn cuDeviceGet(*mut c_int, c_int) -> c_int;
        fn cuDeviceGetName(*mut c_char, c_int, c_int) -> c_int;
        fn cuDeviceTotalMem_v2(*mut usize, c_int) -> c_int;
        fn cuDeviceGetAttribute(*mut c_int, c_int, c_int) -> c_int;
        fn cuDevicePrimaryCtxRetain(*mut Handle, c_int) -> c_int;
        fn cuCtxSetCurrent(Handle) -> c_int;
        fn cuMemGetInfo_v2(*mut usize, *mut usize) -> c_int;
        fn cuMemAlloc_v2(*mut u64, usize) -> c_int;
        fn cuMemFree_v2(u64) -> c_int;
        fn cuMemHostAlloc(*mut *mut c_void, usize, c_uint) -> c_int;
        fn cuMemFreeHost(*mut c_void) -> c_int;
        fn cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, Handle) -> c_int;
        fn cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, Handle) -> c_int;
        fn cuMemcpyDtoDAsync_v2(u64, u64, usize, Handle) -> c_int;
        fn cuMemsetD8Async(u64, u8, usize, Handle) -> c_int;
        fn cuStreamCreate(*mut Handle, c_uint) -> c_int;
        fn cuStreamSynchronize(Handle) -> c_int;
        fn cuStreamWaitEvent(Handle, Handle, c_uint) -> c_int;
        fn cuStreamBeginCapture_v2(Handle, c_int) -> c_int;
        fn cuStreamEndCapture(Handle, *mut Handle) -> c_int;
        fn cuGraphInstantiateWithFlags(*mut Handle, Handle, u64) -> c_int;
        fn cuGraphLaunch(Handle, Handle) -> c_int;
        fn cuGraphExecDestroy(Handle) -> c_int;
        fn cuGraphDestroy(Handle) -> c_int;
        fn cuEventCreate(*mut Handle, c_uint) -> c_int;
        fn cuEventRecord(Handle, Handle) -> c_int;
        fn cuEventSynchronize(Handle) -> c_int;
        fn cuEventElapsedTime(*mut f32, Handle, Handle) -> c_int;
        fn cuEventDestroy_v2(Handle) -> c_int;
        fn cuModuleLoadData(*mut Handle, *const c_void) -> c_int;
        fn cuModuleGetFunction(*mut Handle, Handle, *const c_char) -> c_int;
        fn cuLaunchKernel(
            Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        ) -> c_int;
    }
}

functions! {
    /// The compiler of kernels.
    Nvrtc {
        fn nvrtcVersion(*mut c_int, *mut c_int) -> c_int;
        fn nvrtcCreateProgram(*mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char)
            -> c_int;
        fn nvrtcDestroyProgram(*mut Handle) -> c_int;
        fn nvrtcCompileProgram(Handle, c_int, *const *const c_char) -> c_int;
        fn nvrtcGetProgramLogSize(Handle, *mut usize) -> c_int;
        fn nvrtcGetProgramLog(Handle, *mut c_char) -> c_int;
        fn nvrtcGetCUBINSize(Handle, *mut usize) -> c_int;
        fn nvrtcGetCUBIN(Handle, *mut c_char) -> c_int;
    }
}

functions! {
    /// Convolutions, by cuDNN's backend interface.
    Cudnn {
        fn cudnnGetVersion() -> usize;
        fn cudnnGetCudartVersion() -> usize;
        fn cudnnGetLastErrorString(*mut c_char, usize) -> ();
        fn cudnnCreate(*mut Handle) -> c_int;
        fn cudnnSetStream(Handle, Handle) -> c_int;
        fn cudnnBackendCreateDescriptor(c_int, *mut Handle) -> c_int;
        fn cudnnBackendDestroyDescriptor(Handle) -> c_int;
        fn cudnnBackendSetAttribute(Handle, c_int, c_int, i64, *const c_void) -> c_int;
        fn cudnnBackendGetAttribute(Handle, c_int, c_int, i64, *mut i64, *mut c_void) -> c_int;
        fn cudnnBackendFinalize(Handle) -> c_int;
        fn cudnnBackendExecute(Handle, Handle, Handle) -> c_int;
    }
}

impl Cudnn {
    /// Its version, and that of the CUDA that it was built for.
    pub(crate) fn versions(&self) -> (usize, usize) {
        // SAFETY: both only answer.
        unsafe { ((self.cudnnGetVersion)(), (self.cudnnGetCudartVersion)()) }
    }
}

functions! {
    /// Matrix products.
    CublasLt {
        fn cublasLtGetVersion() -> usize;
        fn cublasLtCreate(*mut Handle) -> c_int;
        fn cublasLtMatmulDescCreate(*mut Handle, c_int, c_int) -> c_int;
        fn cublasLtMatmulDescSetAttribute(Handle, c_int, *const c_void, usize) -> c_int;
        fn cublasLtMatmulDescDestroy(Handle) -> c_int;
        fn cublasLtMatrixLayoutCreate(*mut Handle, c_int, u64, u64, i64) -> c_int;
        fn cublasLtMatrixLayoutSetAttribute(Handle, c_int, *const c_void, usize) -> c_int;
        fn cublasLtMatrixLayoutDestroy(Handle) -> c_int;
        fn cublasLtMatmulPreferenceCreate(*mut Handle) -> c_int;
        fn cublasLtMatmulPreferenceSetAttribute(Handle, c_int, *const c_void, usize) -> c_int;
        fn cublasLtMatmulPreferenceDestroy(Handle) -> c_int;
        fn cublasLtMatmulAlgoGetHeuristic(
            Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut c_void, *mut c_int
        ) -> c_int;
        fn cublasLtMatmul(
            Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void, *const c_void,
            Handle, *mut c_void, Handle, *const c_void, *mut c_void, usize, Handle
        ) -> c_int;
    }
}

/// What NCCL's processes know each other by.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct NcclId(pub(crate) [u8; 128]);

functions! {
    /// What GPUs of several processes send each other.
    Nccl {
        fn ncclGetVersion(*mut c_int) -> c_int;
        fn ncclGetErrorString(c_int) -> *const c_char;
        fn ncclGetLastError(Handle) -> *const c_char;
        fn ncclGetUniqueId(*mut NcclId) -> c_int;
        fn ncclCommInitRank(*mut Handle, c_int, NcclId, c_int) -> c_int;
        fn ncclGroupStart() -> c_int;
        fn ncclGroupEnd() -> c_int;
        fn ncclSend(u64, usize, c_int, c_int, Handle, Handle) -> c_int;
        fn ncclRecv(u64, usize, c_int, c_int, Handle, Handle) -> c_int;
        fn ncclAllReduce(u64, u64, usize, c_int, c_int, Handle, Handle) -> c_int;
    }
}
