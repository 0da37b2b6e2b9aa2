// The kernels for the processor, by name: g++ -std=c++20 -O2 -ffp-contract=off -DCUDA_CPU_FIBERS -shared -fPIC twins.cpp -o kernels.so
#include "all.hpp"
#include "twin.hpp"
#include <cstring>

template <class... A>
Twin twin_of(const char* name, void (*kernel)(A...)) {
    return {name, [kernel](void** params, unsigned gx, unsigned gy, unsigned gz, unsigned threads, unsigned shared) -> std::function<void()> {
        return [&]<size_t... I>(std::index_sequence<I...>) {
            std::tuple<A...> args{*static_cast<A*>(params[I])...};
            return std::function<void()>([=] { cuda_cpu::launch({gx, gy, gz}, threads, shared, [=] { std::apply(kernel, args); }); });
        }(std::index_sequence_for<A...>{});
    }};
}

#define ONE(name) twin_of(#name, name)
#define THREE(name) \
    twin_of(#name "_f32", f32_types::name##_f32), twin_of(#name "_bf16", bf16_types::name##_bf16), twin_of(#name "_f16", f16_types::name##_f16)

#define HEADS(name) \
    twin_of(#name "_32_bf16", bf16_types::name##_32_bf16), twin_of(#name "_64_bf16", bf16_types::name##_64_bf16), \
        twin_of(#name "_32_f16", f16_types::name##_32_f16), twin_of(#name "_64_f16", f16_types::name##_64_f16)

static Twin all[] = {
    THREE(norm_sums), THREE(norm_apply), THREE(norm_grad_sums), THREE(norm_grad_apply), ONE(norm_grad_film), ONE(norm_grad_parameters),
    THREE(enter), THREE(leave), THREE(weights_out), THREE(place), THREE(take), THREE(up), THREE(down), THREE(to_f32),
    THREE(from_f32), THREE(silu), THREE(silu_grad), THREE(relu), THREE(relu_grad), THREE(add), THREE(add_rows), THREE(sum_pixels),
    THREE(spread_rows), THREE(column_sums), ONE(column_sums_finish), THREE(bias_residual), ONE(embed), ONE(embed_grad), ONE(tokens),
    ONE(tokens_grad), ONE(positions_grad), ONE(first_token), ONE(first_token_grad), THREE(pool), THREE(softmax), THREE(softmax_grad), ONE(adamw),
    ONE(sum_squares), ONE(sum_partials), ONE(clip), ONE(accumulate), THREE(prepare), ONE(product), ONE(initial_noise), ONE(mix_noise), ONE(diffusion_loss), ONE(reverse_step), ONE(churn), ONE(scaled), ONE(guide), ONE(correct_answer),
    ONE(dcw), ONE(class_slopes),
    HEADS(attention), HEADS(attention_rows), HEADS(attention_keys), HEADS(attention_queries),
};

extern "C" Twin* twin(const char* name) {
    for (auto& t : all)
        if (!std::strcmp(t.name, name)) return &t;
    return nullptr;
}
