//! Our own primitives: operations of MLX's graph that are functions in Rust and run on a stream of the CPU.

use std::{
    any::Any,
    borrow::Cow,
    ffi::{CStr, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr, slice,
};

use mlx_primitive_sys::{mlx_primitive, mlx_primitive_function, mlx_primitive_output, mlx_primitive_view};
use mlx_rs::{
    Array, Dtype, Stream,
    error::{Exception, Result},
};
use mlx_sys::mlx_array;

/// The error of a primitive's function.
pub(crate) type KernelError = Cow<'static, str>;

/// An input of a primitive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a>(&'a mlx_primitive_view);

/// An output of a primitive: row-major.
#[derive(Debug)]
pub(crate) struct Output<'a>(&'a mlx_primitive_view);

/// The shape and type of an output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape<'a> {
    /// Its sizes.
    pub(crate) sizes: &'a [i32],
    /// The type of its elements.
    pub(crate) dtype: Dtype,
    /// The input that the output is an updated copy of. The output takes over its memory if nothing else owns that; otherwise the
    /// input is copied before the function runs.
    pub(crate) donor: Option<usize>,
}

/// A type of elements.
///
/// # Safety
/// Every pattern of bits is a value, and `DTYPE` has the same size.
pub(crate) unsafe trait Element: Copy + 'static {
    /// MLX's type.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($kind:ty => $dtype:ident),* $(,)?) => {$(
        // SAFETY: MLX's type of this name has this representation, and no pattern is invalid.
        unsafe impl Element for $kind {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )*};
}

elements!(
    f32 => Float32, half::f16 => Float16, half::bf16 => Bfloat16, u32 => Uint32, i32 => Int32, u16 => Uint16, u8 => Uint8,
);

/// A [`primitive`] with one output.
pub(crate) fn primitive_one(
    name: &'static CStr,
    inputs: &[&Array],
    sizes: &[i32],
    dtype: Dtype,
    run: impl Fn(&[Input<'_>], &mut Output<'_>) -> std::result::Result<(), KernelError> + Send + 'static,
) -> Result<Array> {
    let run = move |inputs: &[Input<'_>], outputs: &mut [Output<'_>]| run(inputs, &mut outputs[0]);
    let [output] = primitive(name, inputs, [Shape { sizes, dtype, donor: None }], run)?;
    Ok(output)
}

/// Adds an operation to the graph, on the stream in scope, which must be on the CPU. `run` computes the outputs after the inputs
/// are evaluated. The operation has no gradient. If `run` fails or panics, evaluating an output fails.
pub(crate) fn primitive<const N: usize>(
    name: &'static CStr,
    inputs: &[&Array],
    outputs: [Shape<'_>; N],
    run: impl Fn(&[Input<'_>], &mut [Output<'_>]) -> std::result::Result<(), KernelError> + Send + 'static,
) -> Result<[Array; N]> {
    let results = primitive_of(name, inputs, &outputs, run)?;
    results.try_into().map_err(|_| Exception::custom("an operation has other outputs than it was given"))
}

/// The same with any number of outputs.
pub(crate) fn primitive_of(
    name: &'static CStr,
    inputs: &[&Array],
    outputs: &[Shape<'_>],
    run: impl Fn(&[Input<'_>], &mut [Output<'_>]) -> std::result::Result<(), KernelError> + Send + 'static,
) -> Result<Vec<Array>> {
    #[cfg(test)]
    BUILT.set(BUILT.get() + 1);
    let stream = Stream::thread_local_or_default();
    let handles: Vec<mlx_array> = inputs.iter().map(|array| array.as_ptr()).collect();
    let described = outputs.iter().map(|Shape { sizes, dtype, donor }| mlx_primitive_output {
        shape: sizes.as_ptr(),
        ndim: sizes.len(),
        dtype: (*dtype).into(),
        donor: donor.map_or(-1, |index| index as i32),
    });
    let described: Vec<_> = described.collect();
    let donors = outputs.iter().map(|output| output.donor).collect();
    let function = Call { inputs: inputs.len(), donors, run }.into_function();
    let mut results = vec![mlx_array { ctx: ptr::null_mut() }; outputs.len()];
    let mut reason = [0_u8; 512];
    // SAFETY: the handles are of live arrays, the descriptions, the results and the reason are as long as is said, the name is
    // static, and the function was made for these inputs and outputs.
    let status = unsafe {
        mlx_primitive(
            results.as_mut_ptr(),
            name.as_ptr(),
            handles.as_ptr(),
            handles.len(),
            described.as_ptr(),
            described.len(),
            function,
            stream.as_ref().as_ptr(),
            reason.as_mut_ptr().cast(),
            reason.len(),
        )
    };
    if status != 0 {
        let reason = CStr::from_bytes_until_nul(&reason).unwrap_or_default().to_string_lossy();
        return Err(Exception::custom(format!("{}: {reason}", name.to_string_lossy())));
    }
    // SAFETY: on success each is a fresh handle that nothing else owns.
    Ok(results.into_iter().map(|result| unsafe { Array::from_ptr(result) }).collect())
}

#[cfg(test)]
thread_local! {
    static BUILT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How many primitives this thread has built. The CPU's kernels run nowhere else.
#[cfg(test)]
pub(crate) fn built() -> usize {
    BUILT.get()
}

impl<'a> Input<'a> {
    /// Its sizes.
    pub(crate) fn shape(self) -> &'a [i32] {
        // SAFETY: the view names `ndim` sizes, which live as long as it.
        unsafe { slice::from_raw_parts(self.0.shape, self.0.ndim) }
    }

    /// The strides in elements.
    pub(crate) fn strides(self) -> &'a [i64] {
        // SAFETY: the view names `ndim` strides, which live as long as it.
        unsafe { slice::from_raw_parts(self.0.strides, self.0.ndim) }
    }

    /// The type of its elements.
    pub(crate) fn dtype(self) -> Option<Dtype> {
        Dtype::try_from(self.0.dtype).ok()
    }

    /// The number of elements.
    pub(crate) fn size(self) -> usize {
        self.shape().iter().map(|size| *size as usize).product()
    }

    /// Whether it is row-major without gaps.
    pub(crate) fn is_contiguous(self) -> bool {
        let mut expected = 1;
        self.shape().iter().zip(self.strides()).rev().all(|(size, stride)| {
            let fits = *size == 1 || *stride == expected;
            expected *= i64::from(*size);
            fits
        })
    }

    /// The elements in row-major order, borrowed if they are stored so and copied otherwise.
    pub(crate) fn elements<T: Element>(self) -> std::result::Result<Cow<'a, [T]>, KernelError> {
        let count = self.size();
        if count == 0 {
            return Ok(Cow::Borrowed(&[]));
        }
        let data = self.data::<T>()?;
        if self.is_contiguous() {
            // SAFETY: a row-major array without gaps has `count` elements at its place, which MLX keeps while the function runs
            // and which nobody writes: the donors' are not seen as inputs.
            return Ok(Cow::Borrowed(unsafe { slice::from_raw_parts(data, count) }));
        }
        let mut elements = Vec::with_capacity(count);
        gather(data, self.shape(), self.strides(), &mut elements);
        Ok(Cow::Owned(elements))
    }

    /// The elements of a row-major array, to be written in place. MLX does not know about the write.
    ///
    /// # Safety
    /// While the function runs, nothing else reads or writes the memory, and this is its only view. Later readers are computed after
    /// the function.
    pub(crate) unsafe fn elements_mut<T: Element>(self) -> std::result::Result<&'a mut [T], KernelError> {
        if !self.is_contiguous() {
            return Err("an array that is not row-major is not written in place".into());
        }
        let data = self.data::<T>()?.cast_mut();
        // SAFETY: a row-major array without gaps has so many elements at its place, which MLX keeps while the function runs; the
        // rest is the caller's promise.
        Ok(unsafe { slice::from_raw_parts_mut(data, self.size()) })
    }

    /// The elements of an array `[.., a, b]` in the order of `[.., b, a]`.
    pub(crate) fn transposed<T: Element>(self) -> std::result::Result<Cow<'a, [T]>, KernelError> {
        let (mut shape, mut strides) = (self.shape().to_vec(), self.strides().to_vec());
        let Some(last) = shape.len().checked_sub(1).filter(|last| *last > 0) else {
            return Err("an array without rows and columns".into());
        };
        shape.swap(last - 1, last);
        strides.swap(last - 1, last);
        let view = mlx_primitive_view { shape: shape.as_ptr(), strides: strides.as_ptr(), ..*self.0 };
        Ok(match Input(&view).elements::<T>()? {
            Cow::Borrowed(elements) => {
                // SAFETY: the memory is that of `self`, and as long-lived.
                Cow::Borrowed(unsafe { slice::from_raw_parts(elements.as_ptr(), elements.len()) })
            }
            Cow::Owned(elements) => Cow::Owned(elements),
        })
    }

    /// The memory from the first element to the last, gaps included: element `[i, j, ..]` is at `i · strides[0] + j · strides[1] + ..`.
    pub(crate) fn span<T: Element>(self) -> std::result::Result<&'a [T], KernelError> {
        if self.size() == 0 {
            return Ok(&[]);
        }
        let axes = self.shape().iter().zip(self.strides());
        let mut last = 0;
        for (size, stride) in axes {
            if *stride < 0 && *size > 1 {
                return Err("an array is stored backwards".into());
            }
            last += i64::from(*size - 1) * stride.max(&0);
        }
        // SAFETY: the first and the last element are the array's, so what lies between is of one allocation; see `elements` for
        // the rest.
        Ok(unsafe { slice::from_raw_parts(self.data::<T>()?, last as usize + 1) })
    }

    fn data<T: Element>(self) -> std::result::Result<*const T, KernelError> {
        check::<T>(self.0)?;
        if self.0.data.is_null() {
            return Err("an array without memory, or one that is an output".into());
        }
        Ok(self.0.data.cast_const().cast())
    }
}

impl Output<'_> {
    /// The same, for a while.
    pub(crate) fn reborrow(&mut self) -> Output<'_> {
        Output(self.0)
    }

    /// The type of its elements.
    pub(crate) fn dtype(&self) -> Option<Dtype> {
        Input(self.0).dtype()
    }

    /// The elements, to be written.
    pub(crate) fn elements<T: Element>(&mut self) -> std::result::Result<&mut [T], KernelError> {
        check::<T>(self.0)?;
        let count = Input(self.0).size();
        if count == 0 {
            return Ok(&mut []);
        }
        // SAFETY: MLX allocated the output for this function, row-major, and nothing else reads or writes it while it runs; any
        // bits are a value.
        Ok(unsafe { slice::from_raw_parts_mut(self.0.data.cast(), count) })
    }
}

fn check<T: Element>(view: &mlx_primitive_view) -> std::result::Result<(), KernelError> {
    if view.dtype == u32::from(T::DTYPE) {
        return Ok(());
    }
    Err(format!("an array has elements of type {}, expected {:?}", view.dtype, T::DTYPE).into())
}

/// Appends the elements of a strided array in row-major order.
fn gather<T: Copy>(data: *const T, shape: &[i32], strides: &[i64], to: &mut Vec<T>) {
    match (shape, strides) {
        // SAFETY: the caller walks the array by its own shape and strides, so this is one of its elements.
        ([], _) | (_, []) => to.push(unsafe { *data }),
        ([size], [1]) => {
            // SAFETY: as above; these lie side by side.
            to.extend_from_slice(unsafe { slice::from_raw_parts(data, *size as usize) });
        }
        ([size, shape @ ..], [stride, strides @ ..]) => {
            for index in 0..*size as isize {
                gather(data.wrapping_offset(index * *stride as isize), shape, strides, to);
            }
        }
    }
}

/// Copies an array into one of the same type and sizes.
fn copy(from: Input<'_>, to: &mlx_primitive_view) -> std::result::Result<(), KernelError> {
    fn of<T: Copy>(from: Input<'_>, to: &mlx_primitive_view) {
        let mut elements = Vec::with_capacity(from.size());
        gather(from.0.data.cast_const().cast::<T>(), from.shape(), from.strides(), &mut elements);
        // SAFETY: the two have the same number of elements, of this size.
        unsafe { ptr::copy_nonoverlapping(elements.as_ptr(), to.data.cast(), elements.len()) };
    }
    if from.0.dtype != to.dtype || from.shape() != Input(to).shape() {
        return Err("an output is not like the input that it is to be a copy of".into());
    }
    // SAFETY: a plain function of a type.
    match unsafe { mlx_sys::mlx_dtype_size(to.dtype) } {
        1 => of::<u8>(from, to),
        2 => of::<u16>(from, to),
        4 => of::<u32>(from, to),
        size => return Err(format!("elements of {size} bytes are not copied").into()),
    }
    Ok(())
}

/// The payload that MLX keeps for a function.
struct Call<F> {
    inputs: usize,
    donors: Vec<Option<usize>>,
    run: F,
}

impl<F> Call<F>
where
    F: Fn(&[Input<'_>], &mut [Output<'_>]) -> std::result::Result<(), KernelError> + Send + 'static,
{
    fn into_function(self) -> mlx_primitive_function {
        mlx_primitive_function {
            payload: Box::into_raw(Box::new(self)).cast(),
            run: Self::run,
            free: Self::free,
        }
    }

    /// # Safety
    /// `payload` is of [`into_function`](Self::into_function) and not yet freed; there are as many views as the call has inputs
    /// and outputs, and `capacity` bytes at `reason`.
    unsafe extern "C" fn run(
        payload: *mut c_void,
        inputs: *const mlx_primitive_view,
        outputs: *const mlx_primitive_view,
        reason: *mut c_char,
        capacity: usize,
    ) -> c_int {
        // SAFETY: the caller's promise. MLX runs a function on one thread at a time.
        let (call, inputs, outputs) = unsafe {
            let call = &*payload.cast::<Self>();
            (
                call,
                slice::from_raw_parts(inputs, call.inputs),
                slice::from_raw_parts(outputs, call.donors.len()),
            )
        };
        let failure = match catch_unwind(AssertUnwindSafe(|| call.compute(inputs, outputs))) {
            Ok(Ok(())) => return 0,
            Ok(Err(failure)) => failure,
            Err(panic) => panic_text(panic.as_ref()).into(),
        };
        let length = failure.floor_char_boundary(capacity.saturating_sub(1));
        // SAFETY: the caller's promise; there is room for the text and the byte that ends it.
        unsafe {
            ptr::copy_nonoverlapping(failure.as_ptr().cast(), reason, length);
            *reason.add(length) = 0;
        }
        1
    }

    fn compute(
        &self,
        inputs: &[mlx_primitive_view],
        outputs: &[mlx_primitive_view],
    ) -> std::result::Result<(), KernelError> {
        let mut views = inputs.to_vec();
        for (output, donor) in outputs.iter().zip(&self.donors) {
            let Some(donor) = *donor else { continue };
            if inputs[donor].data != output.data {
                copy(Input(&inputs[donor]), output)?;
            }
            // The function has it as an output.
            views[donor].data = ptr::null_mut();
        }
        let inputs: Vec<_> = views.iter().map(Input).collect();
        let mut outputs: Vec<_> = outputs.iter().map(Output).collect();
        (self.run)(&inputs, &mut outputs)
    }

    /// # Safety
    /// `payload` is of [`into_function`](Self::into_function) and not yet freed.
    unsafe extern "C" fn free(payload: *mut c_void) {
        // SAFETY: the caller's promise. What the function holds must not panic when it is dropped; if it does, it leaks.
        let _ = catch_unwind(|| drop(unsafe { Box::from_raw(payload.cast::<Self>()) }));
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    format!(
        "panicked: {}",
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
    )
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use mlx_rs::{Device, with_device};

    use super::*;

    fn numbers(range: std::ops::Range<u32>, shape: &[i32]) -> Array {
        Array::from_slice(&range.map(|n| n as f32).collect::<Vec<_>>(), shape)
    }

    #[test]
    fn a_function_computes_from_arrays_in_any_order() {
        with_device(Device::cpu(), || {
            let turned = numbers(0..6, &[2, 3]).add(Array::from_f32(1.0)).unwrap().swap_axes(0, 1).unwrap();
            let doubled = primitive_one(c"double", &[&turned], &[3, 2], Dtype::Float32, |inputs, output| {
                assert_eq!((inputs[0].strides(), inputs[0].is_contiguous()), ([1, 3].as_slice(), false));
                assert_eq!(inputs[0].span::<f32>()?, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
                for (to, from) in output.elements::<f32>()?.iter_mut().zip(&*inputs[0].elements::<f32>()?) {
                    *to = 2.0 * from;
                }
                Ok(())
            });
            let next = doubled.unwrap().add(Array::from_f32(0.5)).unwrap();
            assert_eq!(next.to_vec_exact::<f32>().unwrap(), [2.5, 8.5, 4.5, 10.5, 6.5, 12.5]);
        });
    }

    #[test]
    fn a_failure_is_the_error_of_who_evaluates_and_of_nobody_after() {
        with_device(Device::cpu(), || {
            let x = numbers(0..4, &[4]);
            let failing = |run: fn() -> std::result::Result<(), KernelError>| {
                let y = primitive_one(c"failing", &[&x], &[4], Dtype::Float32, move |_, _| run()).unwrap();
                y.add(&x).unwrap().eval().unwrap_err().to_string()
            };
            let refused = failing(|| Err("no such weights".into()));
            assert!(refused.contains("[failing] no such weights"), "{refused}");
            let wrong = primitive_one(c"typed", &[&x], &[4], Dtype::Float32, |inputs, _| {
                inputs[0].elements::<u32>().map(drop)
            });
            let wrong = wrong.unwrap().eval().unwrap_err().to_string();
            assert!(wrong.contains("expected Uint32"), "{wrong}");
            // Without the hook, which prints.
            let panicked = failing(|| std::panic::resume_unwind(Box::new("out of luck")));
            assert!(panicked.contains("panicked: out of luck"), "{panicked}");
            assert_eq!(x.add(&x).unwrap().to_vec_exact::<f32>().unwrap(), [0.0, 2.0, 4.0, 6.0]);
        });
    }

    #[test]
    fn an_output_takes_over_memory_that_nobody_else_needs() {
        with_device(Device::cpu(), || {
            let append = |buffer: Array, value: f32| {
                let shape = Shape { sizes: &[2, 2], dtype: Dtype::Float32, donor: Some(0) };
                let [updated] = primitive(c"append", &[&buffer], [shape], move |inputs, outputs| {
                    assert!(inputs[0].elements::<f32>().is_err());
                    outputs[0].elements::<f32>()?[3] = value;
                    Ok(())
                })
                .unwrap();
                drop(buffer);
                updated.eval().unwrap();
                updated
            };
            // SAFETY: the array was evaluated.
            let place = |array: &Array| unsafe { mlx_sys::mlx_array_data_float32(array.as_ptr()) };
            let first = numbers(0..4, &[2, 2]);
            let kept = first.clone();
            let second = append(first, 7.0);
            assert_eq!(kept.to_vec_exact::<f32>().unwrap(), [0.0, 1.0, 2.0, 3.0]);
            assert_ne!(place(&kept), place(&second));
            let before = place(&second);
            let third = append(second, 8.0);
            assert_eq!(place(&third), before);
            assert_eq!(third.to_vec_exact::<f32>().unwrap(), [0.0, 1.0, 2.0, 8.0]);
            // Of memory in another order a copy is made.
            let turned = append(third.swap_axes(0, 1).unwrap(), 9.0);
            assert_eq!(turned.to_vec_exact::<f32>().unwrap(), [0.0, 2.0, 1.0, 9.0]);
        });
    }

    #[test]
    fn a_function_is_dropped_once_whether_it_ran_or_not() {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        with_device(Device::cpu(), || {
            let drops = Arc::new(AtomicUsize::new(0));
            for (round, evaluate) in [true, false].into_iter().enumerate() {
                let counted = Counted(drops.clone());
                let y = primitive_one(c"counted", &[], &[1], Dtype::Float32, move |_, output| {
                    output.elements::<f32>()?[0] = counted.0.load(Ordering::SeqCst) as f32;
                    Ok(())
                })
                .unwrap();
                if evaluate {
                    assert_eq!(y.to_vec_exact::<f32>().unwrap(), [0.0]);
                }
                drop(y);
                // A later task of the stream has run: the ones before it are gone.
                Array::from_f32(1.0).add(Array::from_f32(1.0)).unwrap().eval().unwrap();
                assert_eq!(drops.load(Ordering::SeqCst), round + 1);
            }
        });
    }
}
