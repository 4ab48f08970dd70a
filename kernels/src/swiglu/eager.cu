// The operators of Hugging Face's `act_fn(gate) * up` and of its autograd backward pass; cuda_eager.rs has them in order.

// x is the gradient of silu(y).
__device__ __forceinline__ float silu_backward(float x, float y) {
    const float s = sigmoid(y);
    return x * s * (1.0f + y * (1.0f - s));
}

MAP(swiglu_eager_silu, elem, elem, x * sigmoid(x))
MAP2(swiglu_eager_mul, elem, elem, elem, x * y)
MAP2(swiglu_eager_silu_backward, elem, elem, elem, silu_backward(x, y))
