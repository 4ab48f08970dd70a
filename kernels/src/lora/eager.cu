// What PEFT does between the products of an adapter; cuda_eager.rs has the operators in order.

MAP(lora_eager_mul, elem, elem, c * x)
MAP2(lora_eager_add, elem, elem, elem, x + y)
