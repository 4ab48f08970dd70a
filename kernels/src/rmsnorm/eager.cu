// The operators of Hugging Face's RMSNorm and of its autograd backward pass; cuda_eager.rs has them in order.

// Forward.
MAP2(rmsnorm_eager_add, elem, elem, elem, x + y)
MAP(rmsnorm_eager_float, float, elem, x)
MAP(rmsnorm_eager_square, float, float, x * x)
ROW_SUM(rmsnorm_eager_mean)
ROWS(rmsnorm_eager_add_eps, x + c)
ROWS(rmsnorm_eager_rsqrt, rsqrtf(x))
MAP_BY_ROW(rmsnorm_eager_mul_rows, float, float, x * y)
MAP(rmsnorm_eager_to, elem, float, x)
MAP2(rmsnorm_eager_mul_weight, elem, elem, elem, x * y)

// Backward.
MAP2(rmsnorm_eager_mul, elem, elem, elem, x * y)
COLUMN_SUM(rmsnorm_eager_sum_rows, rmsnorm_eager_sum_rows_end)
MAP2(rmsnorm_eager_accumulate, float, float, elem, x + y)
MAP2(rmsnorm_eager_mul_f32, float, float, float, x * y)
ROWS(rmsnorm_eager_scale_rows, x * c)
ROWS(rmsnorm_eager_cube, x * x * x)
ROWS2(rmsnorm_eager_mul_of_rows, x * y)
EXPAND(rmsnorm_eager_expand, float, x / c)
MAP(rmsnorm_eager_copy, float, float, x)
MAP(rmsnorm_eager_scale, float, float, x * c)
MAP2(rmsnorm_eager_add_f32, float, float, float, x + y)
