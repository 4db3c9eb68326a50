//! Tensors from safetensors files into MLX's memory, each byte read once and held once.

use std::{
    cell::{Cell, OnceCell, RefCell},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use inference_core::{Dtype, Error, ModelManifest, Result, backend::TensorInfo};
use mlx_rs::Array;

use super::{
    array::{filled, use_large_pages},
    device::on_cpu,
};

/// Bytes read in one call, between two looks at whether the load was cancelled.
const PIECE: usize = 8 << 20;

/// Smaller tensors are read without a thread of their own.
const SMALL: usize = 1 << 20;

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

/// Reads the tensors of a model's files. The manifest has checked their headers: every range lies within its file.
pub(crate) struct Reader<'a> {
    manifest: &'a ModelManifest,
    files: Vec<OnceCell<File>>,
    read: Cell<u64>,
    observe: RefCell<&'a mut dyn FnMut(Progress) -> bool>,
}

impl<'a> Reader<'a> {
    /// A reader that tells `observe` how far it has come, every few milliseconds while it reads, and stops once that returns
    /// `false`.
    pub(crate) fn new(manifest: &'a ModelManifest, observe: &'a mut dyn FnMut(Progress) -> bool) -> Self {
        let files = manifest.files().iter().map(|_| OnceCell::new()).collect();
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
        filled(shape, dtype, |mut memory| {
            for tensor in tensors {
                let bytes = (tensor.range.end - tensor.range.start) as usize;
                if bytes > memory.len() {
                    return Err(Error::backend("mlx", "read a tensor", "it outgrew its shape"));
                }
                let (part, rest) = memory.split_at_mut(bytes);
                self.fill(tensor, part)?;
                memory = rest;
            }
            Ok(())
        })
    }

    /// Whether two tensors of the same size have the same bytes. Stops at the first difference.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::InvalidModel`] where a file became shorter.
    pub(crate) fn has_same_bytes(&self, a: &TensorInfo, b: &TensorInfo) -> Result<bool> {
        let len = a.range.end - a.range.start;
        if len != b.range.end - b.range.start {
            return Ok(false);
        }
        let mut pieces = [vec![0; COMPARED], vec![0; COMPARED]];
        for start in (0..len).step_by(COMPARED) {
            let count = usize::try_from(len - start).map_or(COMPARED, |left| left.min(COMPARED));
            for (tensor, piece) in [a, b].into_iter().zip(&mut pieces) {
                let (file, path) = self.file(tensor)?;
                read(file, path, &mut piece[..count], tensor.range.start + start)?;
            }
            if pieces[0][..count] != pieces[1][..count] {
                return Ok(false);
            }
            // The load may be cancelled meanwhile.
            self.count(0)?;
        }
        Ok(true)
    }

    /// The open file of a tensor, and its path.
    fn file(&self, tensor: &TensorInfo) -> Result<(&File, &Path)> {
        let path = &self.manifest.files()[tensor.file];
        let file = match self.files[tensor.file].get() {
            Some(file) => file,
            None => {
                let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
                self.files[tensor.file].get_or_init(|| file)
            }
        };
        Ok((file, path))
    }

    fn fill(&self, tensor: &TensorInfo, memory: &mut [u8]) -> Result<()> {
        let (file, path) = self.file(tensor)?;
        let start = tensor.range.start;
        if memory.len() < SMALL {
            read(file, path, memory, start)?;
            return self.count(memory.len());
        }
        // The disk and the system's memory are waited for on another thread: this one has other models to serve.
        let on_cpu = on_cpu();
        thread::scope(|scope| {
            let (done, pieces) = channel();
            let work = move || {
                if on_cpu {
                    use_large_pages(memory);
                }
                for (piece, start) in memory.chunks_mut(PIECE).zip((start..).step_by(PIECE)) {
                    let result = read(file, path, piece, start).map(|()| piece.len());
                    let failed = result.is_err();
                    // Nobody listens where the load was cancelled.
                    if done.send(result).is_err() || failed {
                        return;
                    }
                }
            };
            let spawned = thread::Builder::new().name("mlx-read".to_owned()).spawn_scoped(scope, work);
            spawned.map_err(|error| Error::backend("mlx", "start a thread", error))?;
            loop {
                match pieces.recv_timeout(WAIT) {
                    Ok(piece) => self.count(piece?)?,
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
