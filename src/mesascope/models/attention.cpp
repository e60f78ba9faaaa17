// Forward and backward pass of x + attention(norm(x)) for short sequences, one sequence at a time, so that its
// intermediate values stay in the cache.
//
// Compile-time constants: H heads of width D, L positions, and NORM: 0 (none), 1 (LayerNorm) or 2 (RMSNorm). Tensors
// are contiguous [batch, pos, width]; query, key and value are concatenated in rows of 3 * DM. Attention weights are
// stored for the backward pass in rows of LP. Keys are processed in vectors of W, and a block of R queries computes
// only the N vectors with keys that the causal mask allows.
//
// Standard C++17 with the portable vector types of GCC and Clang. Sequences are distributed over threads if the
// compiler supports OpenMP. Parameter gradients are summed in PARTS fixed parts of the batch, so that results are
// bitwise independent of the number of threads.
//
// A key, a value or a gradient that is not finite spoils all positions of its sequence, as it does where the causal mask
// is a sum or a product with 0 over all positions (0 times NaN is NaN). Otherwise it would stay hidden in positions that
// no loss reads.

#include <cmath>
#include <cstring>
#include <memory>
#include <utility>

constexpr int DM = H * D, ROW = 3 * DM, PARTS = 8;
constexpr int W = 8, R = 4, NL = (L + W - 1) / W, LP = NL * W;
static_assert(D % W == 0 && W % R == 0);

#ifdef __AVX512F__
constexpr int WIDE = 16, COLUMNS = 4, ROWS = 6;  // the tile of a matrix product fits into the registers
#else
constexpr int WIDE = 8, COLUMNS = 2, ROWS = 6;
#endif
constexpr int VW = DM % WIDE ? W : WIDE, NM = DM / VW, HW = D % WIDE ? W : WIDE, ND = D / HW;

typedef float V __attribute__((vector_size(4 * W), aligned(4)));
typedef int VI __attribute__((vector_size(4 * W), aligned(4)));
typedef float U __attribute__((vector_size(4 * VW), aligned(4)));  // along d_model
typedef float Z __attribute__((vector_size(4 * HW), aligned(4)));  // along d_head

template <class T = V>
static T load(const float* x) {
    T v;
    std::memcpy(&v, x, sizeof v);
    return v;
}

template <class T>
static void store(float* x, T v) {
    std::memcpy(x, &v, sizeof v);
}

// Reduce a vector to a scalar by combining its halves recursively.
template <class F, class T>
static float folded(T v, F f) {
    constexpr int half = sizeof v / 8;
    typedef float Half __attribute__((vector_size(4 * half), aligned(4)));
    Half both[2];
    std::memcpy(both, &v, sizeof v);
    if constexpr (half == 2) return f(f(both[0], both[1])[0], f(both[0], both[1])[1]);
    else return folded<F, Half>(f(both[0], both[1]), f);
}

template <class T>
static float sum(T v) {
    return folded(v, [](auto a, auto b) { return a + b; });
}

static float most(V v) {
    return folded(v, [](auto a, auto b) { return a > b ? a : b; });
}

// Compute e^x for x <= 0, accurate to 1-2 ulp, as 2^n e^r with |r| <= ln(2) / 2 and the Cephes polynomial for e^r.
// The result is 0 for x < LEAST: it is negligible next to 1, and arithmetic on subnormal numbers is about a hundred
// times slower.
constexpr float LEAST = -60.0f;
static V exponential(V x) {
    const VI none = x < LEAST;
    x = none ? V{} + LEAST : x;
    V n = __builtin_convertvector(__builtin_convertvector(x * 1.44269504f - 0.5f, VI), V);
    V r = x - n * 0.693359375f + n * 2.12194440e-4f;
    V y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    VI bits = (__builtin_convertvector(n, VI) + 127) << 23;
    V power;
    std::memcpy(&power, &bits, sizeof power);
    return none ? V{} : y * power;
}

// A matrix view with a row stride and a column stride.
struct Matrix {
    const float* at;
    long row, column = 1;
    Matrix after(long rows) const { return {at ? at + rows * row : nullptr, row, column}; }
};

// Compute a tile of y = start + x w with M rows and N vectors of columns in registers; start may alias y.
template <int M, int N>
static void tile(float* y, long row, Matrix start, Matrix x, Matrix w, int depth) {
    U s[M][N];
    for (int r = 0; r < M; r++)
        for (int n = 0; n < N; n++) s[r][n] = start.at ? load<U>(start.at + r * start.row + n * VW) : U{};
    for (int k = 0; k < depth; k++) {
        U v[N];
        for (int n = 0; n < N; n++) v[n] = load<U>(w.at + k * w.row + n * VW);
        for (int r = 0; r < M; r++)
            for (int n = 0; n < N; n++) s[r][n] += x.at[r * x.row + k * x.column] * v[n];
    }
    for (int r = 0; r < M; r++)
        for (int n = 0; n < N; n++) store(y + r * row + n * VW, s[r][n]);
}

// Compute y = start + x w with M rows and N columns, in tiles of nearly equal height: 20 rows are 4 x 5, not 3 x 6 and 2,
// because the sums of a low tile are too few to hide the latency of a multiplication.
template <int M, int N>
static void product(float* y, long row, Matrix start, Matrix x, Matrix w, int depth) {
    constexpr int n = N < COLUMNS * VW ? N / VW : COLUMNS, tiles = (M + ROWS - 1) / ROWS, m = (M + tiles - 1) / tiles;
    for (int c = 0; c + n * VW <= N; c += n * VW) {
        const Matrix from = {start.at ? start.at + c : nullptr, start.row}, right = {w.at + c, w.row};
        for (int i = 0; i + m <= M; i += m)
            tile<m, n>(y + i * row + c, row, from.after(i), x.after(i), right, depth);
        if constexpr (constexpr int rest = M % m; rest)
            tile<rest, n>(y + (M - rest) * row + c, row, from.after(M - rest), x.after(M - rest), right, depth);
    }
    if constexpr (constexpr int rest = N % (n * VW); rest) {
        constexpr int c = N - rest;
        product<M, rest>(y + c, row, {start.at ? start.at + c : nullptr, start.row}, x, {w.at + c, w.row}, depth);
    }
}

// Whether all numbers of x are finite: 0 times any other number is not 0.
static bool all_finite(const float* x, long row, int rows, int columns) {
    U total = {};
    for (int i = 0; i < rows; i++)
        for (int c = 0; c < columns; c += VW) total += load<U>(x + i * row + c) * 0.0f;
    return sum(total) == 0.0f;
}

// Set x to NaN.
static void spoil(float* x, long row, int rows, int columns) {
    for (int i = 0; i < rows; i++)
        for (int c = 0; c < columns; c++) x[i * row + c] = NAN;
}

// Add the sum of the rows of x to y.
static void add_rows(float* y, const float* x, int columns) {
    for (int c = 0; c < columns; c += VW) {
        U s = load<U>(y + c);
        for (int i = 0; i < L; i++) s += load<U>(x + i * columns + c);
        store(y + c, s);
    }
}

// One row of the residual stream, centred if the norm centres it, and the scale of the norm.
struct Row {
    U centred[NM];
    float scale;
    Row(const float* x, float eps) {
        U total = {}, squares = {};
        for (int n = 0; n < NM; n++) total += centred[n] = load<U>(x + n * VW);
        const float mean = NORM == 1 ? sum(total) / DM : 0.0f;
        for (int n = 0; n < NM; n++) {
            centred[n] -= mean;
            squares += centred[n] * centred[n];
        }
        scale = 1.0f / std::sqrt(sum(squares) / DM + eps);
    }
};

// Compute y = norm(x) for a sequence.
static void normed(float* y, const float* x, const float* gain, const float* shift, float eps) {
    for (int i = 0; i < L; i++) {
        const Row row(x + i * DM, eps);
        for (int n = 0; n < NM; n++) {
            U v = row.centred[n] * row.scale * load<U>(gain + n * VW);
            store(y + i * DM + n * VW, NORM == 1 ? v + load<U>(shift + n * VW) : v);
        }
    }
}

// Backward pass of the norm: accumulate into dx, dgain and dshift.
static void norm_back(float* dx, float* dgain, float* dshift, const float* dy, const float* x, const float* gain,
                      float eps) {
    for (int i = 0; i < L; i++) {
        const Row row(x + i * DM, eps);
        U unit[NM], d[NM], total = {}, along = {};
        for (int n = 0; n < NM; n++) {
            const U given = load<U>(dy + i * DM + n * VW);
            unit[n] = row.centred[n] * row.scale;
            d[n] = given * load<U>(gain + n * VW);
            store(dgain + n * VW, load<U>(dgain + n * VW) + given * unit[n]);
            if (NORM == 1) store(dshift + n * VW, load<U>(dshift + n * VW) + given);
            total += d[n];
            along += d[n] * unit[n];
        }
        const float mean = NORM == 1 ? sum(total) / DM : 0.0f, share = sum(along) / DM;
        for (int n = 0; n < NM; n++) {
            float* to = dx + i * DM + n * VW;
            store(to, load<U>(to) + (d[n] - mean - unit[n] * share) * row.scale);
        }
    }
}

// The keys or values of a head, transposed to [d_head, pos].
struct Turned {
    float of[D][LP];
    Turned(const float* x) {
        for (int d = 0; d < D; d++)
            for (int j = 0; j < LP; j++) of[d][j] = j < L ? x[j * ROW + d] : 0.0f;
    }
};

// Dot products of M rows with the keys (or values) in N vectors of positions.
template <int N, int M>
static void scores(V s[M][N], const float* x, long row, const Turned& turned) {
    for (int r = 0; r < M; r++)
        for (int n = 0; n < N; n++) s[r][n] = V{};
    for (int d = 0; d < D; d++) {
        V y[N];
        for (int n = 0; n < N; n++) y[n] = load(turned.of[d] + n * W);
        for (int r = 0; r < M; r++)
            for (int n = 0; n < N; n++) s[r][n] += x[r * row + d] * y[n];
    }
}

// Call f(first query, vectors of keys, number of queries) for every block of queries.
template <class F, int... N>
static void blocks(F f, std::integer_sequence<int, N...>) {
    constexpr int rest = L % R ? L % R : R;
    auto some = [&](auto n) {
        for (int i = (n.value - 1) * W; i < n.value * W && i < L; i += R)
            if (i + R <= L) f(i, n, std::integral_constant<int, R>());
            else f(i, n, std::integral_constant<int, rest>());
    };
    (some(std::integral_constant<int, N + 1>()), ...);
}

// Compute out[i] = sum over j <= i of p[i, j] v[j] for M queries from i, where p = softmax(scale q k).
template <int N, int M>
static void attend(int i, const float* q, const Turned& keys, const float* v, float* p, float* out, float scale) {
    const VI first = {0, 1, 2, 3, 4, 5, 6, 7};
    V s[M][N];
    scores<N, M>(s, q, ROW, keys);
    for (int r = 0; r < M; r++) {
        VI seen[N];
        V top = V{} - 3e38f, total = {};
        for (int n = 0; n < N; n++) {
            seen[n] = first + n * W <= i + r;
            s[r][n] = seen[n] ? s[r][n] * scale : V{} - 3e38f;
            top = s[r][n] > top ? s[r][n] : top;
        }
        float highest = most(top);
        for (int n = 0; n < N; n++) {
            V e = exponential(s[r][n] - highest);
            s[r][n] = seen[n] ? e : V{};
            total += s[r][n];
        }
        float share = 1.0f / sum(total);
        for (int n = 0; n < N; n++) store(p + r * LP + n * W, s[r][n] * share);
    }
    Z mixed[M][ND] = {};
    for (int j = 0; j < i + M; j++)
        for (int n = 0; n < ND; n++) {
            Z value = load<Z>(v + j * ROW + n * HW);
            for (int r = 0; r < M; r++) mixed[r][n] += p[r * LP + j] * value;
        }
    for (int r = 0; r < M; r++)
        for (int n = 0; n < ND; n++) store(out + r * DM + n * HW, mixed[r][n]);
}

struct Sums {
    Z k[L][ND] = {}, v[L][ND] = {};
};

// Compute the gradients of M queries from i, and accumulate those of keys and values.
template <int N, int M>
static void attend_back(int i, const float* q, const float* k, const Turned& values, const float* p, const float* g,
                        float* dq, Sums& sums, float scale) {
    V s[M][N];
    float ds[M][N * W];
    scores<N, M>(s, g, DM, values);
    for (int r = 0; r < M; r++) {
        V total = {};
        for (int n = 0; n < N; n++) total += s[r][n] * load(p + r * LP + n * W);
        float mean = sum(total);
        for (int n = 0; n < N; n++) store(ds[r] + n * W, (s[r][n] - mean) * load(p + r * LP + n * W) * scale);
    }
    Z x[M][ND], y[M][ND], found[M][ND] = {};
    for (int r = 0; r < M; r++)
        for (int n = 0; n < ND; n++) {
            x[r][n] = load<Z>(q + r * ROW + n * HW);
            y[r][n] = load<Z>(g + r * DM + n * HW);
        }
    for (int j = 0; j < i + M; j++)
        for (int n = 0; n < ND; n++) {
            Z key = load<Z>(k + j * ROW + n * HW), dk = sums.k[j][n], dv = sums.v[j][n];
            for (int r = 0; r < M; r++) {
                found[r][n] += ds[r][j] * key;
                dk += ds[r][j] * x[r][n];
                dv += p[r * LP + j] * y[r][n];
            }
            sums.k[j][n] = dk;
            sums.v[j][n] = dv;
        }
    for (int r = 0; r < M; r++)
        for (int n = 0; n < ND; n++) store(dq + r * ROW + n * HW, found[r][n]);
}

using Vectors = std::make_integer_sequence<int, NL>;

// Compute the outputs of all heads of a sequence before the output projection, and store the weights in p.
static void heads(const float* qkv, float* p, float* mixed, float scale) {
    for (int h = 0; h < H; h++) {
        const float *q = qkv + h * D, *k = q + DM, *v = k + DM;
        const Turned keys(k);
        float* kept = p + h * L * LP;
        blocks(
            [&](int i, auto n, auto m) {
                attend<n.value, m.value>(i, q + i * ROW, keys, v, kept + i * LP, mixed + i * DM + h * D, scale);
            },
            Vectors());
    }
}

// Compute the gradients of queries, keys and values from the gradient of the head outputs.
static void heads_back(const float* qkv, const float* p, const float* given, float* dqkv, float scale) {
    for (int h = 0; h < H; h++) {
        const float *q = qkv + h * D, *k = q + DM, *v = k + DM, *kept = p + h * L * LP, *g = given + h * D;
        float *dq = dqkv + h * D, *dk = dq + DM, *dv = dk + DM;
        const Turned values(v);
        Sums sums;
        blocks(
            [&](int i, auto n, auto m) {
                attend_back<n.value, m.value>(i, q + i * ROW, k, values, kept + i * LP, g + i * DM, dq + i * ROW, sums,
                                              scale);
            },
            Vectors());
        for (int j = 0; j < L; j++)
            for (int n = 0; n < ND; n++) {
                store(dk + j * ROW + n * HW, sums.k[j][n]);
                store(dv + j * ROW + n * HW, sums.v[j][n]);
            }
    }
}

// Memory layout of one partial sum of the parameter gradients.
struct Gradients {
    float maps[ROW * DM], biases[ROW], out[DM * DM], out_bias[DM], gain[DM], shift[DM];
};

// Scratch memory of a thread for one sequence.
struct alignas(64) Room {
    float norm[L * DM], back[L * DM], maps_back[L * ROW];
};

extern "C" const long PARTS_OF_SUMS = PARTS, NUMBERS_IN_A_PART = sizeof(Gradients) / sizeof(float), NUMBERS_IN_A_ROW = LP;

// Compute y = x + out(attention(maps(norm(x)))). maps [DM, ROW] and out [DM, DM] are transposed, [in, out]. qkv, p and
// mixed are stored for the backward pass.
extern "C" void forward(const float* x, const float* gain, const float* shift, const float* maps, const float* biases,
                        const float* out, const float* out_bias, float* qkv, float* p, float* mixed, float* y,
                        long batch, float scale, float eps, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const auto room = std::make_unique<Room>();
#pragma omp for schedule(static)
        for (long b = 0; b < batch; b++) {
            const float *stream = x + b * L * DM, *read = NORM ? room->norm : stream;
            float *own = qkv + b * L * ROW, *mix = mixed + b * L * DM, *to = y + b * L * DM;
            if (NORM) normed(room->norm, stream, gain, shift, eps);
            product<L, ROW>(own, ROW, {biases, 0}, {read, DM}, {maps, ROW}, DM);
            heads(own, p + b * H * L * LP, mix, scale);
            if (!all_finite(own + DM, ROW, L, 2 * DM)) {  // keys and values
                spoil(p + b * H * L * LP, LP, H * L, LP);
                spoil(mix, DM, L, DM);
            }
            product<L, DM>(to, DM, {stream, DM}, {mix, DM}, {out, DM}, DM);
            for (int i = 0; i < L; i++)
                for (int c = 0; c < DM; c += VW)
                    store(to + i * DM + c, load<U>(to + i * DM + c) + load<U>(out_bias + c));
        }
    }
}

// Compute the gradient of x, and PARTS partial sums of the parameter gradients, from the gradient of y. maps [ROW, DM]
// and out [DM, DM] are not transposed.
extern "C" void backward(const float* x, const float* gain, const float* shift, const float* maps, const float* out,
                         const float* qkv, const float* p, const float* mixed, const float* given, float* dx,
                         float* gradients, long batch, float scale, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int part = 0; part < PARTS; part++) {
        Gradients& sums = reinterpret_cast<Gradients*>(gradients)[part];
        std::memset(&sums, 0, sizeof sums);
        const auto room = std::make_unique<Room>();
        float *d = room->back, *dqkv = room->maps_back;
        for (long b = batch * part / PARTS; b < batch * (part + 1) / PARTS; b++) {
            const float *stream = x + b * L * DM, *read = NORM ? room->norm : stream, *g = given + b * L * DM;
            const float* mix = mixed + b * L * DM;
            float* to = dx + b * L * DM;
            if (NORM) normed(room->norm, stream, gain, shift, eps);
            add_rows(sums.out_bias, g, DM);
            product<DM, DM>(sums.out, DM, {sums.out, DM}, {g, 1, DM}, {mix, DM}, L);
            product<L, DM>(d, DM, {nullptr, 0}, {g, DM}, {out, DM}, DM);
            heads_back(qkv + b * L * ROW, p + b * H * L * LP, d, dqkv, scale);
            if (!all_finite(d, DM, L, DM)) spoil(dqkv + DM, ROW, L, 2 * DM);
            add_rows(sums.biases, dqkv, ROW);
            product<ROW, DM>(sums.maps, DM, {sums.maps, DM}, {dqkv, 1, ROW}, {read, DM}, L);
            if (NORM) {
                product<L, DM>(d, DM, {nullptr, 0}, {dqkv, ROW}, {maps, DM}, ROW);
                std::memcpy(to, g, L * DM * sizeof(float));
                norm_back(to, sums.gain, sums.shift, d, stream, gain, eps);
            } else product<L, DM>(to, DM, {g, DM}, {dqkv, ROW}, {maps, DM}, ROW);
        }
    }
}
