//! Tensors from files into MLX's memory, each byte of it written once.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock,
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use inference_core::{
    Dtype, Error, ModelManifest, Result,
    backend::{ReadAt, TensorInfo, TensorSource},
};
use mlx_rs::Array;

use super::{
    array::{filled, on_device, use_large_pages},
    device::on_cpu,
};

/// Bytes read in one call, between two looks at whether the load was cancelled.
const PIECE: usize = 8 << 20;

/// Smaller tensors are read without a thread of their own.
const SMALL: usize = 1 << 20;

/// Bytes of arrays that get large pages as a whole: tens of milliseconds in which other models wait.
const AT_ONCE: usize = 64 << 20;

/// How long a read is waited for between two calls of `observe`.
const WAIT: Duration = Duration::from_millis(1);

/// Bytes of two tensors that are compared at once.
const COMPARED: usize = 1 << 20;

/// How far a load or conversion has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of weights read.
    pub bytes: u64,
    /// Bytes of weights in all.
    pub total: u64,
}

/// Threads that compute one tensor from what is stored.
const MOST_THREADS: usize = 8;

/// Reads the tensors of a model's files. The manifest has checked their headers: every range lies within its file.
pub(crate) struct Reader<'a> {
    manifest: &'a ModelManifest,
    files: Files<'a>,
    read: Cell<u64>,
    observe: RefCell<&'a mut dyn FnMut(Progress) -> bool>,
}

impl<'a> Reader<'a> {
    /// A reader that tells `observe` how far it has come, every few milliseconds while it reads, and stops once that returns
    /// `false`.
    pub(crate) fn new(manifest: &'a ModelManifest, observe: &'a mut dyn FnMut(Progress) -> bool) -> Self {
        let files = Files {
            paths: manifest.files(),
            open: manifest.files().iter().map(|_| OnceLock::new()).collect(),
        };
        Self { manifest, files, read: Cell::new(0), observe: RefCell::new(observe) }
    }

    /// What the folder says about itself.
    pub(crate) fn manifest(&self) -> &'a ModelManifest {
        self.manifest
    }

    /// The tensors, one after the other in memory, as one array of elements `dtype` of this shape, which has as many bytes as
    /// they do.
    pub(crate) fn read(&self, tensors: &[&TensorInfo], dtype: Dtype, shape: &[i32]) -> Result<Array> {
        let dtype = mlx_dtype(dtype).ok_or_else(|| {
            Error::backend("mlx", "read a tensor", format!("MLX has no elements of type {dtype:?}"))
        })?;
        let array = filled(shape, dtype, |mut memory| {
            // Parts of joined matrices are smaller than a large page. Longer arrays get theirs piece by piece, as they are read.
            if on_cpu() && memory.len() <= AT_ONCE {
                use_large_pages(memory);
            }
            for tensor in tensors {
                let bytes = tensor.bytes() as usize;
                if bytes > memory.len() {
                    return Err(Error::backend("mlx", "read a tensor", "it outgrew its shape"));
                }
                let (part, rest) = memory.split_at_mut(bytes);
                self.fill(tensor, part)?;
                memory = rest;
            }
            Ok(())
        })?;
        on_device(array).map_err(|error| Error::backend("mlx", "copy a tensor to the GPU", error))
    }

    /// Whether two tensors of the same size have the same bytes. Stops at the first difference.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::InvalidModel`] where a file became shorter.
    pub(crate) fn has_same_bytes(&self, a: &TensorInfo, b: &TensorInfo) -> Result<bool> {
        let len = a.bytes();
        if len != b.bytes() {
            return Ok(false);
        }
        let [one, other] = [self.bytes_of(a), self.bytes_of(b)];
        // A piece is as many whole units of either as it can hold.
        let unit = if one.unit() == 1 { other.unit() } else { one.unit() };
        if !unit.is_multiple_of(one.unit()) || !unit.is_multiple_of(other.unit()) {
            return Ok(false);
        }
        let compared = (COMPARED / unit).max(1) * unit;
        let mut pieces = [vec![0; compared], vec![0; compared]];
        for start in (0..len).step_by(compared) {
            let count = usize::try_from(len - start).map_or(compared, |left| left.min(compared));
            for (bytes, piece) in [&one, &other].into_iter().zip(&mut pieces) {
                bytes.read(start, &mut piece[..count])?;
            }
            if pieces[0][..count] != pieces[1][..count] {
                return Ok(false);
            }
            // The load may be cancelled meanwhile.
            self.count(0)?;
        }
        Ok(true)
    }

    fn bytes_of<'b>(&'b self, tensor: &'b TensorInfo) -> Bytes<'b> {
        Bytes { files: &self.files, tensor }
    }

    fn fill(&self, tensor: &TensorInfo, memory: &mut [u8]) -> Result<()> {
        let bytes = self.bytes_of(tensor);
        if memory.len() < SMALL {
            bytes.read(0, memory)?;
            return self.count(memory.len());
        }
        let piece = (PIECE / bytes.unit()).max(1) * bytes.unit();
        // One thread waits for the disk. Computing takes as many as there are.
        let threads = match tensor.source {
            None => 1,
            Some(_) => thread::available_parallelism().map_or(1, |n| n.get().min(MOST_THREADS)),
        };
        let starts = (0..).step_by(piece);
        let pieces = Mutex::new(starts.zip(memory.chunks_mut(piece)));
        let on_cpu = on_cpu();
        // The disk and the system's memory are waited for on other threads: this one has other models to serve, and looks whether
        // the load is cancelled.
        thread::scope(|scope| {
            let (done, counts) = channel();
            for _ in 0..threads {
                let (done, bytes, pieces) = (done.clone(), &bytes, &pieces);
                let work = move || {
                    loop {
                        let Some((start, piece)) = pieces.lock().ok().and_then(|mut pieces| pieces.next())
                        else {
                            return;
                        };
                        if on_cpu {
                            use_large_pages(piece);
                        }
                        let result = bytes.read(start, piece).map(|()| piece.len());
                        let failed = result.is_err();
                        // Nobody listens where the load was cancelled.
                        if done.send(result).is_err() || failed {
                            return;
                        }
                    }
                };
                let spawned = thread::Builder::new().name("mlx-read".to_owned()).spawn_scoped(scope, work);
                spawned.map_err(|error| Error::backend("mlx", "start a thread", error))?;
            }
            drop(done);
            loop {
                match counts.recv_timeout(WAIT) {
                    Ok(count) => self.count(count?)?,
                    Err(RecvTimeoutError::Timeout) => self.count(0)?,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
        })
    }

    /// Counts bytes that were read, and tells so.
    fn count(&self, bytes: usize) -> Result<()> {
        self.read.set(self.read.get() + bytes as u64);
        let progress = Progress { bytes: self.read.get(), total: self.manifest.weight_bytes() };
        if (self.observe.borrow_mut())(progress) { Ok(()) } else { Err(Error::Cancelled) }
    }
}

/// A model's files, each opened when it is first read.
struct Files<'a> {
    paths: &'a [PathBuf],
    open: Vec<OnceLock<File>>,
}

impl ReadAt for Files<'_> {
    fn read_at(&self, file: usize, position: u64, memory: &mut [u8]) -> Result<()> {
        let path = &self.paths[file];
        let file = match self.open[file].get() {
            Some(open) => open,
            None => {
                let opened = File::open(path).map_err(|source| Error::io("open", path, source))?;
                self.open[file].get_or_init(|| opened)
            }
        };
        read(file, path, memory, position)
    }
}

/// The bytes of a tensor, wherever they come from.
struct Bytes<'a> {
    files: &'a Files<'a>,
    tensor: &'a TensorInfo,
}

impl Bytes<'_> {
    /// Positions and lengths of reads are multiples of so many bytes.
    fn unit(&self) -> usize {
        self.tensor.source.as_ref().map_or(1, |source| source.unit().max(1))
    }

    fn read(&self, position: u64, memory: &mut [u8]) -> Result<()> {
        match &self.tensor.source {
            Some(source) => TensorSource::read(&**source, self.files, position, memory),
            None => self.files.read_at(self.tensor.file, self.tensor.range.start + position, memory),
        }
    }
}

/// Fills memory with the bytes of a file from this position on.
fn read(file: &File, path: &Path, memory: &mut [u8], position: u64) -> Result<()> {
    file.read_exact_at(memory, position).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => Error::invalid_file(path, "became shorter while it was read"),
        _ => Error::io("read", path, source),
    })
}

/// A safetensors file whose header was read and checked with [`read_tensors`](inference_core::backend::read_tensors).
pub(crate) struct Tensors<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Tensors<'a> {
    /// Opens it.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub(crate) fn open(path: &'a Path) -> Result<Self> {
        Ok(Self { path, file: File::open(path).map_err(|source| Error::io("open", path, source))? })
    }

    /// One of its tensors, whose elements MLX calls `dtype`.
    ///
    /// # Errors
    /// [`Error::Io`], MLX's own, and a dimension that MLX cannot hold.
    pub(crate) fn read(&self, info: &TensorInfo, dtype: mlx_rs::Dtype) -> Result<Array> {
        let shape: Option<Vec<_>> = info.shape.iter().map(|n| i32::try_from(*n).ok()).collect();
        let shape = shape.ok_or_else(|| {
            Error::invalid_file(self.path, format!("MLX cannot hold an array of {:?}", info.shape))
        })?;
        let read = |memory: &mut [u8]| {
            let read = self.file.read_exact_at(memory, info.range.start);
            read.map_err(|source| Error::io("read", self.path, source))
        };
        filled(&shape, dtype, read)
    }
}

/// MLX's type for elements of a file, where it has one. Eight-bit floats come as bytes: they are scales, or packed.
pub(crate) fn mlx_dtype(dtype: Dtype) -> Option<mlx_rs::Dtype> {
    Some(match dtype {
        Dtype::Bool => mlx_rs::Dtype::Bool,
        Dtype::U8 | Dtype::F8E4m3 | Dtype::F8E5m2 | Dtype::F8E8m0 => mlx_rs::Dtype::Uint8,
        Dtype::I8 => mlx_rs::Dtype::Int8,
        Dtype::U16 => mlx_rs::Dtype::Uint16,
        Dtype::I16 => mlx_rs::Dtype::Int16,
        Dtype::U32 => mlx_rs::Dtype::Uint32,
        Dtype::I32 => mlx_rs::Dtype::Int32,
        Dtype::U64 => mlx_rs::Dtype::Uint64,
        Dtype::I64 => mlx_rs::Dtype::Int64,
        Dtype::F16 => mlx_rs::Dtype::Float16,
        Dtype::Bf16 => mlx_rs::Dtype::Bfloat16,
        Dtype::F32 => mlx_rs::Dtype::Float32,
        _ => return None,
    })
}
