//! Streams, launches and graphs of launches.

use std::{ffi::c_void, ptr, sync::Arc};

use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUlaunchAttributeID_enum as LaunchAttribute};

use crate::{Device, Result, compile::Kernel, device::check};

/// A queue of work.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    raw: sys::CUstream,
}

// SAFETY: handles of the driver may be used from any thread.
unsafe impl Send for Stream {}

/// How many threads a launch has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) block: u32,
    /// Blocks of a cluster, neighbours along the first side of the grid.
    pub(crate) cluster: u32,
    /// Bytes of dynamic shared memory of a block.
    pub(crate) shared: u32,
}

impl Size {
    pub(crate) fn new(grid: [usize; 3], block: u32, shared: u32) -> Self {
        Self { grid: grid.map(|size| size as u32), block, cluster: 1, shared }
    }
}

/// A launch of a kernel.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) size: Size,
    /// The one argument, a structure that is aligned to 8 bytes.
    pub(crate) argument: Arc<[u64]>,
    /// Whether the kernel may start while the one before it runs.
    pub(crate) early: bool,
}

impl Stream {
    /// A stream that does not wait for the default one.
    ///
    /// # Errors
    /// [`crate::Error::Driver`]
    pub fn new(device: &Device) -> Result<Self> {
        device.bind()?;
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a context is current.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, flags) })?;
        Ok(Self { device: device.clone(), raw })
    }

    /// Its handle: a `CUstream`, or `cudaStream_t`.
    #[must_use]
    pub fn raw(&self) -> *mut c_void {
        self.raw.cast()
    }

    /// Waits until its work is done.
    ///
    /// # Errors
    /// [`crate::Error::Driver`], also of work that failed.
    pub fn synchronize(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the stream exists.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw) })
    }

    /// Adds a launch.
    ///
    /// # Safety
    /// The argument is what the kernel reads, and its addresses are those of live memory.
    pub(crate) unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        self.device.bind()?;
        let cluster = sys::CUlaunchAttribute {
            id: LaunchAttribute::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                    x: launch.size.cluster,
                    y: 1,
                    z: 1,
                },
            },
        };
        let early = sys::CUlaunchAttribute {
            id: LaunchAttribute::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let mut attributes = [cluster, early];
        let config = sys::CUlaunchConfig {
            gridDimX: launch.size.grid[0],
            gridDimY: launch.size.grid[1],
            gridDimZ: launch.size.grid[2],
            blockDimX: launch.size.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.size.shared,
            hStream: self.raw,
            attrs: attributes.as_mut_ptr(),
            numAttrs: 1 + u32::from(launch.early),
        };
        let mut arguments = [launch.argument.as_ptr().cast::<c_void>().cast_mut()];
        // SAFETY: the driver copies the argument; the caller vouches for it.
        check("cuLaunchKernelEx", unsafe {
            sys::cuLaunchKernelEx(&config, launch.kernel.function(), arguments.as_mut_ptr(), ptr::null_mut())
        })
    }

    /// The graph of the launches, which keeps their kernels alive.
    ///
    /// # Safety
    /// As for [`Self::launch`], for as long as the graph is replayed.
    pub(crate) unsafe fn capture(&self, launches: &[Launch]) -> Result<Graph> {
        self.device.bind()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream exists and captures nothing else: this type lends itself to one caller at a time.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.raw, mode) })?;
        // SAFETY: as the caller vouches.
        let launched = launches.iter().try_for_each(|launch| unsafe { self.launch(launch) });
        let mut graph: CUgraph = ptr::null_mut();
        // SAFETY: a capture has begun.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.raw, &mut graph) });
        let graph = OwnedGraph(graph);
        launched?;
        ended?;
        let mut exec: CUgraphExec = ptr::null_mut();
        // SAFETY: the graph is complete.
        check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, graph.0, 0) })?;
        let kernels = launches.iter().map(|launch| launch.kernel.clone()).collect();
        Ok(Graph { device: self.device.clone(), exec, _kernels: kernels })
    }

    /// Adds a replay of a graph.
    ///
    /// # Errors
    /// [`crate::Error::Driver`]
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both exist.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.exec, self.raw) })
    }

    /// Remembers the moment at which its work so far is done.
    ///
    /// # Errors
    /// [`crate::Error::Driver`]
    pub fn record(&self) -> Result<Event> {
        self.event(sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)
    }

    /// The same, with the time, which costs more.
    ///
    /// # Errors
    /// [`crate::Error::Driver`]
    pub fn record_timed(&self) -> Result<Event> {
        self.event(sys::CUevent_flags_enum::CU_EVENT_DEFAULT)
    }

    fn event(&self, flags: sys::CUevent_flags_enum) -> Result<Event> {
        self.device.bind()?;
        let mut raw = ptr::null_mut();
        // SAFETY: a context is current.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, flags as u32) })?;
        let event = Event { device: self.device.clone(), raw };
        // SAFETY: both exist.
        check("cuEventRecord", unsafe { sys::cuEventRecord(raw, self.raw) })?;
        Ok(event)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: created once, and nobody else has it.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}

struct OwnedGraph(CUgraph);

impl Drop for OwnedGraph {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: captured once, and nobody else has it.
            let _ = unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

/// Launches that are replayed as one.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    exec: CUgraphExec,
    _kernels: Vec<Arc<Kernel>>,
}

// SAFETY: handles of the driver may be used from any thread.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: instantiated once, and nobody else has it. The driver waits for replays that run.
            let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}

/// A moment in the work of a stream.
#[derive(Debug)]
pub struct Event {
    device: Device,
    raw: sys::CUevent,
}

impl Event {
    /// Waits for it.
    ///
    /// # Errors
    /// [`crate::Error::Driver`], also of work that failed.
    pub fn wait(&self) -> Result<()> {
        self.device.bind()?;
        // SAFETY: the event exists.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })
    }

    /// Milliseconds from this to a later moment, for which it waits. Both have to be timed.
    ///
    /// # Errors
    /// [`crate::Error::Driver`]
    pub fn milliseconds_to(&self, later: &Self) -> Result<f32> {
        later.wait()?;
        let mut milliseconds = 0.0;
        // SAFETY: both events exist, and both have been recorded.
        check("cuEventElapsedTime", unsafe {
            sys::cuEventElapsedTime_v2(&mut milliseconds, self.raw, later.raw)
        })?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: created once, and nobody else has it.
            let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}
