//! Matrix products through cuBLASLt: row-major, f32 sums, one plan a shape, its algorithm found by timing the candidates.
//!
//! A plan holds the library's descriptors and the fastest algorithm of those that `tuning.rs` tries on random operands. Choices are kept
//! on disk by device and library version, so that a shape is tuned once a machine.

mod tuning;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    ffi::c_void,
    path::PathBuf,
    rc::Rc,
};

use cudarc::cublaslt::sys::{self, cublasStatus_t::CUBLAS_STATUS_SUCCESS};

use self::tuning::extents;
use super::{
    Buffer, Elem, Gpu, GpuError, Product, Products, Ptr, algorithms::Algorithms, launch::LANES,
    product::Matrix,
};

/// Workspace of a product: what the library's documentation recommends for Hopper.
const WORKSPACE_BYTES: usize = 64 << 20;

/// Workspaces of all: products that run beside each other have one each.
pub const WORKSPACES_BYTES: usize = (1 + LANES) * WORKSPACE_BYTES;

/// cuBLASLt on one GPU.
pub struct Matmul<'a> {
    on: &'a Gpu,
    handle: sys::cublasLtHandle_t,
    workspaces: Buffer,
    plans: RefCell<HashMap<Product, Rc<Plan>>>,
    algorithms: RefCell<Algorithms>,
    /// Kernels of the library that ran in this process.
    loaded: RefCell<HashSet<Kernel>>,
    /// Device and version of the library: what choices are good for.
    of: String,
}

struct Plan {
    product: Product,
    descriptor: sys::cublasLtMatmulDesc_t,
    /// Of the library's A, B and C: column-major, so our B, A and C.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: RefCell<sys::cublasLtMatmulAlgo_t>,
}

/// What the library's kernel for a product depends on, besides its alignment, which is always that of 8 elements.
#[derive(PartialEq, Eq, Hash)]
struct Kernel {
    algorithm: [u64; 8],
    transposed: [bool; 2],
    elems: [Elem; 2],
    bias: bool,
    accumulate: bool,
    batched: bool,
}

impl Kernel {
    fn of(p: &Product, algorithm: [u64; 8]) -> Self {
        let (transposed, elems) = ([p.a.transposed, p.b.transposed], [p.elem, p.out]);
        let Product { bias, accumulate, batch, .. } = *p;
        Self { algorithm, transposed, elems, bias, accumulate, batched: batch.count > 1 }
    }
}

fn check(at: &str, status: sys::cublasStatus_t) -> Result<(), GpuError> {
    if status == CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(GpuError::new(
        format!("{status:?}"),
        format!("cuBLASLt, {at}"),
        "leading dimensions must be multiples of 8 elements",
    ))
}

fn data_type(elem: Elem) -> sys::cudaDataType_t {
    match elem {
        Elem::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        Elem::F32 => sys::cudaDataType_t::CUDA_R_32F,
    }
}

impl<'a> Matmul<'a> {
    /// Opens the library; algorithms found are kept in `folder`, where one is given.
    ///
    /// # Errors
    /// The library is missing, or there is no room for its workspace.
    pub fn new(on: &'a Gpu, folder: Option<PathBuf>) -> Result<Self, GpuError> {
        super::library::require(&["libcublasLt"])?;
        let workspaces = on.alloc(WORKSPACES_BYTES)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the context is current, which `alloc` saw to, and `handle` outlives the call.
        check("create", unsafe { sys::cublasLtCreate(&mut handle) })?;
        // SAFETY: no arguments.
        let version = unsafe { sys::cublasLtGetVersion() };
        let of = format!("{}-{version}", on.name().replace(' ', "-"));
        let algorithms = RefCell::new(Algorithms::load(folder.map(|f| f.join(format!("{of}-proved.txt")))));
        let (plans, loaded) = (RefCell::default(), RefCell::default());
        Ok(Self { on, handle, workspaces, plans, algorithms, loaded, of })
    }

    unsafe fn launch(
        &self,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        a: Ptr,
        b: Ptr,
        bias: Ptr,
        c: Ptr,
    ) -> Result<(), GpuError> {
        self.on.bind()?;
        if plan.product.bias {
            plan.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.0)?;
        }
        let (alpha, beta) = (plan.product.factor.value(), if plan.product.accumulate { 1.0f32 } else { 0.0 });
        let [left, right, out] = plan.layouts;
        let at = |p: Ptr| p.0 as *const c_void;
        let lane = self.on.lane().map_or(0, |lane| 1 + lane);
        let workspace = self.workspaces.ptr().offset(lane * WORKSPACE_BYTES);
        // SAFETY: descriptors and workspace live as long as the plan and `self`; scalars are read before the call returns;
        // the operands are the caller's promise.
        let status = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                plan.descriptor,
                (&raw const alpha).cast(),
                at(b),
                left,
                at(a),
                right,
                (&raw const beta).cast(),
                at(c),
                out,
                c.0 as *mut c_void,
                out,
                algorithm,
                workspace.0 as *mut c_void,
                WORKSPACE_BYTES,
                self.on.current().cast(),
            )
        };
        check(&plan.product.name(), status)
    }

    fn plan(&self, product: &Product) -> Result<Rc<Plan>, GpuError> {
        if let Some(plan) = self.plans.borrow().get(product) {
            return Ok(plan.clone());
        }
        let plan = Plan::new(product)?;
        let name = product.name();
        let known = self.algorithms.borrow().get(&name);
        let data = match known {
            Some(data) => data,
            None => {
                let best = self.fastest(&plan)?;
                self.loaded.borrow_mut().insert(Kernel::of(product, best.data));
                self.algorithms.borrow_mut().put(&name, best.data)
            }
        };
        plan.algorithm.borrow_mut().data = data;
        let plan = Rc::new(plan);
        self.plans.borrow_mut().insert(*product, plan.clone());
        Ok(plan)
    }

    /// Plans a product; tunes it, if nobody did so before on this kind of device; and runs it once, if its kernel has not run in
    /// this process: the driver loads a kernel when it is first launched, and a step would wait for that. Takes operands of the product's
    /// extents, and frees them again.
    ///
    /// # Errors
    /// The shape has no algorithm, or there is no room for the operands.
    pub fn tune(&self, product: &Product) -> Result<(), GpuError> {
        let plan = self.plan(product)?;
        if self.loaded.borrow_mut().insert(Kernel::of(product, plan.algorithm.borrow().data)) {
            self.load(&plan)?;
        }
        Ok(())
    }

    /// Runs a product on operands of any values, all of them in the same memory.
    fn load(&self, plan: &Plan) -> Result<(), GpuError> {
        let bytes = extents(&plan.product).map(|(len, elem)| len * elem.bytes()).into_iter().max();
        let any = self.on.alloc(bytes.unwrap_or_default())?;
        let at = any.ptr();
        // SAFETY: the memory has the extents of every operand, and lives until the GPU is synchronised; nobody reads what is left there.
        unsafe { self.launch(plan, &plan.algorithm.borrow(), at, at, at, at)? };
        self.on.synchronise()
    }

    /// Whether [`tune`](Self::tune) has nothing left to do but to plan.
    pub fn is_tuned(&self, product: &Product) -> bool {
        let known = self.algorithms.borrow().get(&product.name());
        known.is_some_and(|algorithm| self.loaded.borrow().contains(&Kernel::of(product, algorithm)))
    }

    /// The choices of every product that was planned, or adopted: device and library, then a line each.
    pub fn choices(&self) -> String {
        let mut all: BTreeMap<String, [u64; 8]> = self.algorithms.borrow().adopted().clone();
        all.extend(self.plans.borrow().iter().map(|(p, plan)| (p.name(), plan.algorithm.borrow().data)));
        let lines = all.iter().map(|(name, data)| Algorithms::line(name, *data));
        format!("{}\n{}", self.of, lines.collect::<String>())
    }

    /// Takes such choices over, also for products that are planned: the fastest algorithm is another from time to time, and
    /// rounds otherwise. Whether it did: those of another device or library are left alone.
    #[must_use]
    pub fn adopt(&self, choices: &str) -> bool {
        let mut lines = choices.lines();
        let same = lines.next() == Some(&self.of);
        if same {
            self.plans.borrow_mut().clear();
            self.algorithms.borrow_mut().adopt(lines);
        }
        same
    }
}

impl Products for Matmul<'_> {
    /// A new shape is planned and, if nobody did so before on this kind of device, tuned, which waits for the stream.
    unsafe fn product(&self, product: &Product, a: Ptr, b: Ptr, bias: Ptr, c: Ptr) -> Result<(), GpuError> {
        let plan = self.plan(product)?;
        // SAFETY: the caller's promise.
        unsafe { self.launch(&plan, &plan.algorithm.borrow(), a, b, bias, c) }
    }
}

impl Drop for Matmul<'_> {
    fn drop(&mut self) {
        let _ = self.on.synchronise();
        // SAFETY: created in `new` and destroyed here only, after its products have ended.
        let _ = unsafe { sys::cublasLtDestroy(self.handle) };
    }
}

impl Plan {
    fn new(p: &Product) -> Result<Self, GpuError> {
        let mut descriptor = std::ptr::null_mut();
        let (compute, scale) =
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F);
        // SAFETY: `descriptor` outlives the call.
        check(&p.name(), unsafe { sys::cublasLtMatmulDescCreate(&mut descriptor, compute, scale) })?;
        // A row-major matrix is the transpose of a column-major one: Cᵀ = Bᵀ·Aᵀ swaps the operands.
        let stored = |x: Matrix, rows: usize, columns: usize| {
            if x.transposed { (rows, columns, x.ld) } else { (columns, rows, x.ld) }
        };
        let extents = [stored(p.b, p.k, p.n), stored(p.a, p.m, p.k), (p.n, p.m, p.ldc)];
        let mut layouts = [std::ptr::null_mut(); 3];
        for (i, ((rows, columns, ld), elem)) in extents.into_iter().zip([p.elem, p.elem, p.out]).enumerate() {
            let (rows, columns, ld) = (rows as u64, columns as u64, ld as i64);
            // SAFETY: as above.
            check(&p.name(), unsafe {
                sys::cublasLtMatrixLayoutCreate(&mut layouts[i], data_type(elem), rows, columns, ld)
            })?;
        }
        let algorithm = RefCell::new(sys::cublasLtMatmulAlgo_t { data: [0; 8] });
        let plan = Self { product: *p, descriptor, layouts, algorithm };
        if p.batch.count > 1 {
            plan.repeat()?;
        }
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        // `cublasOperation_t`: 0 as stored, 1 transposed.
        let operation = |x: Matrix| i32::from(x.transposed);
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &operation(p.b))?;
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &operation(p.a))?;
        if p.bias {
            plan.set(
                Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
                &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            )?;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &data_type(p.out))?;
        }
        Ok(plan)
    }

    /// Tells every layout how many matrices it stands for, and how far apart they are.
    fn repeat(&self) -> Result<(), GpuError> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let Product { batch, .. } = self.product;
        let count = batch.count as i32;
        let [a, b, c] = batch.strides.map(|stride| stride as i64);
        for (layout, stride) in self.layouts.into_iter().zip([b, a, c]) {
            // SAFETY: the layout is alive, and the values have the types that the attributes' documentation names.
            let statuses = unsafe {
                [
                    sys::cublasLtMatrixLayoutSetAttribute(
                        layout,
                        Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                        (&raw const count).cast(),
                        size_of_val(&count),
                    ),
                    sys::cublasLtMatrixLayoutSetAttribute(
                        layout,
                        Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                        (&raw const stride).cast(),
                        size_of_val(&stride),
                    ),
                ]
            };
            statuses.into_iter().try_for_each(|status| check(&self.product.name(), status))?;
        }
        Ok(())
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), GpuError> {
        let value: *const T = value;
        // SAFETY: the descriptor is alive, and the value has the type that the attribute's documentation names.
        let status = unsafe {
            sys::cublasLtMatmulDescSetAttribute(self.descriptor, attribute, value.cast(), size_of::<T>())
        };
        check(&self.product.name(), status)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: created in `new` and destroyed here only; the library copies what a running product needs.
        unsafe {
            sys::cublasLtMatmulDescDestroy(self.descriptor);
            for layout in self.layouts {
                sys::cublasLtMatrixLayoutDestroy(layout);
            }
        }
    }
}
