// What a diffusion method does per pixel, as the processor does it (crates/math): noising, losses and reverse steps.

// Streams of random numbers, by what they are for.
constexpr unsigned NOISE = 5, PERTURBATION = 6, SAMPLE = 8, SAMPLE_STEP = 9;

// The normal numbers 2·pair and 2·pair + 1 of a stream, by Box and Muller in f64.
inline void normal_pair(unsigned long long seed, unsigned domain, unsigned long long index, unsigned step, unsigned pair, float (&to)[2]) {
    unsigned c[4] = {pair, step, (unsigned)index, domain << 24 | ((unsigned)(index >> 32) & 0xffffffu)};
    philox(c, (unsigned)seed, (unsigned)(seed >> 32));
    const double scale = 1.0 / 9007199254740992.0;
    const double u = ((unsigned long long)c[0] << 32 | c[1]) >> 11, v = ((unsigned long long)c[2] << 32 | c[3]) >> 11;
    const double radius = sqrt(-2.0 * log(1.0 - u * scale));
    double sine, cosine;
    sincospi(2.0 * (v * scale), &sine, &cosine);
    to[0] = (float)(radius * cosine), to[1] = (float)(radius * sine);
}

// f(pair) of the pairs of an image's values, which the grid's first dimension shares out.
template <class F> void each_pair(int values, F f) {
    for (int pair = (int)(blockIdx.x * THREADS + threadIdx.x); 2 * pair < values; pair += (int)gridDim.x * THREADS) f(pair);
}

// How an image is noised.
struct Mixing { float signal, noise, of_eps, of_xi, of_target, unused[3]; };

// x_t and what a network that predicts epsilon should answer, for images at consecutive positions of a run.
// launch: grid (any, n), block 256
PLAIN void __launch_bounds__(THREADS)
mix_noise(const float* __restrict__ x_start, float* __restrict__ x_t, float* __restrict__ eps, const Mixing* __restrict__ mixings,
          unsigned long long seed, unsigned long long position, int values) {
    const int image = blockIdx.y;
    const Mixing m = mixings[image];
    const long long first = (long long)image * values;
    const unsigned long long index = position + image;
    each_pair(values, [&](int pair) {
        float e[2], xi[2] = {0, 0};
        normal_pair(seed, NOISE, index, 0, pair, e);
        if (m.of_xi != 0) normal_pair(seed, PERTURBATION, index, 0, pair, xi);
        for (int j = 0; j < 2 && 2 * pair + j < values; j++) {
            const long long at = first + 2 * pair + j;
            const float mixed = m.of_xi != 0 ? (e[j] * m.of_eps + xi[j] * m.of_xi) * m.noise : e[j] * m.of_eps * m.noise;
            x_t[at] = x_start[at] * m.signal + mixed;
            eps[at] = e[j] * m.of_target;
        }
    });
}

// How a network's answer is read at one timestep: crates/math/src/reverse.rs.
struct Reading {
    int prediction;  // 0: epsilon, 1: x_0, 2: the mean
    int first;       // whether t = 0
    int variance;    // 0: fixed, 1: learned, 2: a learned place in a range
    float x_start[2], posterior_mean[2], posterior_log_variance, least, greatest, eps[2], mean_slope, log_variance_slope;
};

inline float clipped(float x, float limit) {
    x = x < -limit ? -limit : x;
    return x > limit ? limit : x;
}

inline float x_start_of(const Reading& r, float x, float prediction, float limit /*0: none*/) {
    const float x_start = prediction * r.x_start[0] + x * r.x_start[1];
    return limit > 0 ? clipped(x_start, limit) / limit : x_start;
}

inline float posterior_mean_of(const Reading& r, float x_start, float x) { return x_start * r.posterior_mean[0] + x * r.posterior_mean[1]; }

inline float eps_of(const Reading& r, float x_start, float x) { return (x * r.eps[0] - x_start) / r.eps[1]; }

inline float log_variance_of(const Reading& r, float values) {
    const float weight = (values + 1.0f) * 0.5f;
    return r.variance == 0 ? r.least : r.variance == 1 ? values : weight * r.greatest + (1.0f - weight) * r.least;
}

// A term of the bound in nats, and its derivatives by mean and log variance: crates/math/src/loss.rs.
struct Term { float value, by_mean, by_log_variance; };

inline Term divergence(float mean1, float logvar1, float mean2, float logvar2) {
    const float distance = mean1 - mean2, precision = expf(-logvar2), ratio = expf(logvar1 - logvar2);
    const float squared = distance * distance * precision;
    return {(logvar2 - logvar1 - 1.0f + ratio + squared) * 0.5f, -(distance * precision), (1.0f - ratio - squared) * 0.5f};
}

inline void normal_cdf(float x, float& value, float& slope) {
    const float root = 0.7978845608028654f, cubic = 0.044715f;
    const float t = tanhf((x + x * x * x * cubic) * root);
    slope = (1.0f - t * t) * 0.5f * root * (1.0f + x * x * cubic * 3.0f);
    value = (t + 1.0f) * 0.5f;
}

inline Term decoder(float x, float mean, float log_variance) {
    const float half_level = 1.0f / 255.0f, least_probability = 1e-12f, edge = 0.999f;
    const float centered = x - mean, inverse = expf(-(log_variance * 0.5f));
    const float upper = inverse * (centered + half_level), lower = inverse * (centered - half_level);
    float above, above_slope, below, below_slope;
    normal_cdf(upper, above, above_slope);
    normal_cdf(lower, below, below_slope);
    const bool black = x < -edge, white = x > edge;
    if (black) below_slope = 0;
    if (white) above_slope = 0;
    float probability = white ? 1.0f - below : above - below;
    if (black) probability = above;
    // NaN is not below the least probability, and stays.
    const bool clamped = probability < least_probability;
    if (clamped) probability = least_probability;
    const float reciprocal = clamped ? 0 : 1.0f / probability;
    return {-logf(probability), (above_slope - below_slope) * inverse * reciprocal, (above_slope * upper - below_slope * lower) * 0.5f * reciprocal};
}

// What is minimised for an image: factors of the derivatives of its square errors and of its bound.
struct Loss {
    Reading reading;
    float error_weight, bound_weight;
};

constexpr int LOSS_THREADS = 512;

// The losses of images and their derivatives by the network's output: per image the sums of squares and of the bound's terms in bits.
// launch: grid (n), block 512
PLAIN void __launch_bounds__(LOSS_THREADS)
diffusion_loss(const float* __restrict__ x_start, const float* __restrict__ x_t, const float* __restrict__ eps, const float* __restrict__ output,
               float* __restrict__ grad, double* __restrict__ terms /*[N, 2]*/, const Loss* __restrict__ losses, int values, int outputs, int has_error) {
    __shared__ double sums[2][LOSS_THREADS];
    const int image = blockIdx.x;
    const Loss loss = losses[image];
    const Reading& r = loss.reading;
    const bool learned = outputs > values, has_bound = learned || !has_error;
    const float in_bits = 1.4426950408889634f;
    const long long from = (long long)image * values, to = (long long)image * outputs;
    double squares = 0, bounds = 0;
    for (int i = threadIdx.x; i < values; i += LOSS_THREADS) {
        const float clean = x_start[from + i], noisy = x_t[from + i], prediction = output[to + i];
        const float variance = learned ? output[to + values + i] : 0;
        float by_prediction = 0, by_values = 0;
        if (has_bound) {
            const float predicted = x_start_of(r, noisy, prediction, 0);
            const float mean = r.prediction == 2 ? prediction : posterior_mean_of(r, predicted, noisy), log_variance = log_variance_of(r, variance);
            const Term term = r.first ? decoder(clean, mean, log_variance)
                                      : divergence(posterior_mean_of(r, clean, noisy), r.posterior_log_variance, mean, log_variance);
            bounds += (double)(term.value * in_bits);
            by_prediction = term.by_mean * in_bits * r.mean_slope * loss.bound_weight;
            by_values = term.by_log_variance * in_bits * r.log_variance_slope * loss.bound_weight;
        }
        if (has_error) {
            const float target = r.prediction == 0 ? eps[from + i] : r.prediction == 1 ? clean : posterior_mean_of(r, clean, noisy);
            const float error = prediction - target;
            squares += (double)(error * error);
            by_prediction = error * loss.error_weight;
        }
        grad[to + i] = by_prediction;
        if (learned) grad[to + values + i] = by_values;
    }
    sums[0][threadIdx.x] = squares, sums[1][threadIdx.x] = bounds;
    for (int width = LOSS_THREADS / 2; width; width /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < width)
            for (int k = 0; k < 2; k++) sums[k][threadIdx.x] += sums[k][threadIdx.x + width];
    }
    if (threadIdx.x < 2) terms[2 * image + threadIdx.x] = sums[threadIdx.x][0];
}

// x_T of images by their numbers.
// launch: grid (any, n), block 256
PLAIN void __launch_bounds__(THREADS)
initial_noise(float* __restrict__ x, const unsigned long long* __restrict__ images, unsigned long long seed, int values) {
    const int image = blockIdx.y;
    each_pair(values, [&](int pair) {
        float z[2];
        normal_pair(seed, SAMPLE, images[image], 0, pair, z);
        for (int j = 0; j < 2 && 2 * pair + j < values; j++) x[(long long)image * values + 2 * pair + j] = z[j];
    });
}

// A stage of a chain: crates/math/src/reverse.rs.
struct ReverseStep {
    Reading reading;
    int draws;
    int way;  // 0: DDPM, 1: DDIM, 2: a mixture
    int corrects, keeps;
    float corrector[6], next[6];
    float limit;  // of predicted images; 0: none
    float guidance;  // how far a classifier's gradient moves epsilon
};

inline float mixed(const float (&m)[6], float x, float kept, float x_start, float newer, float older, float noise) {
    return x * m[0] + kept * m[1] + x_start * m[2] + newer * m[3] + older * m[4] + noise * m[5];
}

// The next x in place of x, the predicted x_0, and what is kept. Earlier predictions, what was kept and a classifier's gradient may be null
// where no stage needs them; the gradient and the noise are multiplied by their scales.
// launch: grid (any, n), block 256
PLAIN void __launch_bounds__(THREADS)
reverse_step(float* __restrict__ x, const float* __restrict__ output, float* __restrict__ x_start, const float* __restrict__ newer,
             const float* __restrict__ older, float* __restrict__ kept, const float* __restrict__ guidance, float guidance_scale, float noise_scale,
             const ReverseStep* __restrict__ step, const unsigned long long* __restrict__ images, unsigned long long seed, unsigned number, int values,
             int outputs) {
    const int image = blockIdx.y;
    const ReverseStep s = *step;
    const Reading& r = s.reading;
    each_pair(values, [&](int pair) {
        float z[2] = {0, 0};
        if (s.draws) normal_pair(seed, SAMPLE_STEP, images[image], number, pair, z);
        for (int j = 0; j < 2 && 2 * pair + j < values; j++) {
            const int i = 2 * pair + j;
            const long long at = (long long)image * values + i, of = (long long)image * outputs + i;
            const float now = x[at], prediction = output[of], noise = z[j] * noise_scale, slope = guidance ? guidance[at] * guidance_scale : 0;
            float predicted = x_start_of(r, now, prediction, s.limit), next;
            if (s.way == 0) {
                float mean = r.prediction == 2 ? prediction : posterior_mean_of(r, predicted, now);
                const float log_variance = log_variance_of(r, outputs > values ? output[of + values] : 0);
                if (guidance) mean += expf(log_variance) * slope;
                next = s.draws ? mean + expf(log_variance * 0.5f) * noise : mean;
            } else {
                float eps = eps_of(r, predicted, now);
                if (guidance) {
                    eps -= slope * s.guidance;
                    predicted = now * r.eps[0] - eps * r.eps[1];
                }
                if (s.way == 1) {
                    const float mean = predicted * s.next[0] + eps * s.next[1];
                    next = s.draws ? mean + s.next[2] * noise : mean;
                } else {
                    const float last = kept[at], new_x = newer ? newer[at] : 0, old_x = older ? older[at] : 0;
                    const float corrected = s.corrects ? mixed(s.corrector, now, last, predicted, new_x, old_x, noise) : now;
                    const float keep = s.keeps ? corrected : last;
                    next = mixed(s.next, corrected, keep, predicted, new_x, old_x, noise);
                    kept[at] = keep;
                }
            }
            x_start[at] = predicted;
            x[at] = next;
        }
    });
}

// More noise in x: x times `of_x` plus noise times `of_noise`.
// launch: grid (any, n), block 256
PLAIN void __launch_bounds__(THREADS)
churn(float* __restrict__ x, float of_x, float of_noise, const unsigned long long* __restrict__ images, unsigned long long seed, unsigned number,
      int values) {
    each_pair(values, [&](int pair) {
        float z[2];
        normal_pair(seed, SAMPLE_STEP, images[blockIdx.y], number, pair, z);
        for (int j = 0; j < 2 && 2 * pair + j < values; j++) {
            float& at = x[(long long)blockIdx.y * values + 2 * pair + j];
            at = at * of_x + z[j] * of_noise;
        }
    });
}

// x times a number, as a network sees it.
// launch: grid (any, n), block 256
PLAIN void __launch_bounds__(THREADS)
scaled(const float* __restrict__ x, float* __restrict__ to, float factor, int values) {
    each_pair(values, [&](int pair) {
        for (int j = 0; j < 2 && 2 * pair + j < values; j++) {
            const long long at = (long long)blockIdx.y * values + 2 * pair + j;
            to[at] = x[at] * factor;
        }
    });
}

// A network's answer, led away from a weaker one (crates/math/src/guidance.rs); `further` is w - 1.
// launch: grid (any, n), block 256
PLAIN void __launch_bounds__(THREADS)
guide(float* __restrict__ output, const float* __restrict__ weak, float further, int values, int outputs, int of_weak) {
    each_pair(values, [&](int pair) {
        for (int j = 0; j < 2 && 2 * pair + j < values; j++) {
            const int i = 2 * pair + j;
            float& answer = output[(long long)blockIdx.y * outputs + i];
            answer += further * (answer - weak[(long long)blockIdx.y * of_weak + i]);
        }
    });
}

// In place of what a network says of x times `input`, read by `seen`, what it would say of x, read by `own`, with its epsilon divided.
// launch: grid (any, n), block 256
PLAIN void __launch_bounds__(THREADS)
correct_answer(const float* __restrict__ x, float* __restrict__ output, const __grid_constant__ Reading own, const __grid_constant__ Reading seen,
               float input, float divisor, int values, int outputs) {
    each_pair(values, [&](int pair) {
        for (int j = 0; j < 2 && 2 * pair + j < values; j++) {
            const int i = 2 * pair + j;
            const float now = x[(long long)blockIdx.y * values + i], met = now * input;
            float& answer = output[(long long)blockIdx.y * outputs + i];
            const float eps = (seen.prediction == 0 ? answer : eps_of(seen, x_start_of(seen, met, answer, 0), met)) / divisor;
            const float predicted = now * own.eps[0] - eps * own.eps[1];
            answer = own.prediction == 0 ? eps : own.prediction == 1 ? predicted : posterior_mean_of(own, predicted, now);
        }
    });
}

// DCW's correction after a step (crates/math/src/haar.rs): x moves from x_0, by `low` in the low band of each block of two by two pixels and by
// `high` in the others; by `low` alone where all pixels are treated alike.
// launch: grid (planes, any), block 256
PLAIN void __launch_bounds__(THREADS)
dcw(float* __restrict__ x, const float* __restrict__ x_start, float low, float high, int on_pixels, int height, int width) {
    const long long plane = (long long)blockIdx.x * height * width;
    x += plane, x_start += plane;
    const int count = on_pixels ? height * width : height * width / 4;
    for (int i = (int)(blockIdx.y * THREADS + threadIdx.x); i < count; i += (int)gridDim.y * THREADS) {
        if (on_pixels) {
            x[i] += low * (x[i] - x_start[i]);
            continue;
        }
        const int first = i / (width / 2) * 2 * width + i % (width / 2) * 2, at[4] = {first, first + 1, first + width, first + width + 1};
        float difference[4];
#pragma unroll
        for (int k = 0; k < 4; k++) difference[k] = x[at[k]] - x_start[at[k]];
        const float mean = ((difference[0] + difference[1]) + (difference[2] + difference[3])) * 0.25f, moved = low * mean;
#pragma unroll
        for (int k = 0; k < 4; k++) x[at[k]] += moved + high * (difference[k] - mean);
    }
}

// The derivative of the log-probability of each image's class by the logits (crates/math/src/loss.rs).
// launch: grid (n), block 256
PLAIN void __launch_bounds__(THREADS)
class_slopes(const float* __restrict__ logits, float* __restrict__ grad, const int* __restrict__ labels, int classes) {
    __shared__ double sum;
    __shared__ float greatest;
    logits += (long long)blockIdx.x * classes, grad += (long long)blockIdx.x * classes;
    if (threadIdx.x == 0) {
        // One thread adds, in the processor's order; a network has at most some thousand classes.
        greatest = logits[0];
        for (int c = 1; c < classes; c++) greatest = logits[c] > greatest ? logits[c] : greatest;
        sum = 0;
        for (int c = 0; c < classes; c++) sum += exp((double)logits[c] - (double)greatest);
    }
    __syncthreads();
    const double log_sum = log(sum);
    for (int c = threadIdx.x; c < classes; c += THREADS)
        grad[c] = (float)((c == labels[blockIdx.x] ? 1.0 : 0.0) - exp((double)logits[c] - (double)greatest - log_sum));
}
