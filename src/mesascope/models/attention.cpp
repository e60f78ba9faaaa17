// Causal attention over short sequences, forward and backward, in one pass over memory.
//
// Compiled for one size: D numbers a head, L positions. Everything lies as linear maps leave it, [batch, pos, head, D],
// with `row` numbers from one position to the next. Weights are kept for the way back, in rows of LP. Scores run over
// keys in vectors of W, so that keys that a query cannot see cost little: a block of R queries takes only the N vectors
// that hold a key it sees.
//
// Standard C++17 and the vector types of GCC and Clang, which fit any processor. Sequences are shared among threads
// where the compiler knows OpenMP; no sum runs over sequences, so that their number changes no bit.

#include <cstring>
#include <utility>

constexpr int W = 8, R = 4, NL = (L + W - 1) / W, LP = NL * W, ND = D / W;
static_assert(D % W == 0 && W % R == 0);

typedef float V __attribute__((vector_size(4 * W), aligned(4)));
typedef int VI __attribute__((vector_size(4 * W), aligned(4)));

static V load(const float* x) {
    V v;
    std::memcpy(&v, x, sizeof v);
    return v;
}

static void store(float* x, V v) { std::memcpy(x, &v, sizeof v); }

static float sum(V v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

static float most(V v) {
    float m = v[0];
    for (int i = 1; i < W; i++) m = v[i] > m ? v[i] : m;
    return m;
}

// e^x for x <= 0, to the last bit or the one before it: 2^n e^r with |r| <= ln(2) / 2, and Cephes' polynomial for e^r.
static V exponential(V x) {
    x = x < -87.0f ? V{} - 87.0f : x;
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
    return y * power;
}

// A head's keys or values with positions side by side.
struct Turned {
    float of[D][LP] = {};
    void read(const float* x, long row) {
        for (int j = 0; j < L; j++)
            for (int d = 0; d < D; d++) of[d][j] = x[j * row + d];
    }
};

// Products of M rows with all positions of N vectors.
template <int N, int M>
static void products(V s[M][N], const float* x, long row, const Turned& turned) {
    for (int r = 0; r < M; r++)
        for (int n = 0; n < N; n++) s[r][n] = V{};
    for (int d = 0; d < D; d++) {
        V y[N];
        for (int n = 0; n < N; n++) y[n] = load(turned.of[d] + n * W);
        for (int r = 0; r < M; r++)
            for (int n = 0; n < N; n++) s[r][n] += x[r * row + d] * y[n];
    }
}

// Calls f for every block of queries with its first query, its vectors of keys and its number of queries.
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

template <int N, int M>
static void attend(int i, const float* q, const Turned& keys, const float* v, float* p, float* out, long row,
                   float scale) {
    const VI first = {0, 1, 2, 3, 4, 5, 6, 7};
    V s[M][N];
    products<N, M>(s, q, row, keys);
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
    V mixed[M][ND] = {};
    for (int j = 0; j < i + M; j++)
        for (int n = 0; n < ND; n++) {
            V value = load(v + j * row + n * W);
            for (int r = 0; r < M; r++) mixed[r][n] += p[r * LP + j] * value;
        }
    for (int r = 0; r < M; r++)
        for (int n = 0; n < ND; n++) store(out + r * row + n * W, mixed[r][n]);
}

struct Sums {
    V k[L][ND] = {}, v[L][ND] = {};
};

template <int N, int M>
static void go_back(int i, const float* q, const float* k, const Turned& values, const float* p, const float* g,
                    float* gq, long row, Sums& sums, float scale) {
    V s[M][N];
    float ds[M][N * W];
    products<N, M>(s, g, row, values);
    for (int r = 0; r < M; r++) {
        V total = {};
        for (int n = 0; n < N; n++) total += s[r][n] * load(p + r * LP + n * W);
        float mean = sum(total);
        for (int n = 0; n < N; n++) store(ds[r] + n * W, (s[r][n] - mean) * load(p + r * LP + n * W) * scale);
    }
    V x[M][ND], y[M][ND], dq[M][ND] = {};
    for (int r = 0; r < M; r++)
        for (int n = 0; n < ND; n++) {
            x[r][n] = load(q + r * row + n * W);
            y[r][n] = load(g + r * row + n * W);
        }
    for (int j = 0; j < i + M; j++)
        for (int n = 0; n < ND; n++) {
            V key = load(k + j * row + n * W), dk = sums.k[j][n], dv = sums.v[j][n];
            for (int r = 0; r < M; r++) {
                dq[r][n] += ds[r][j] * key;
                dk += ds[r][j] * x[r][n];
                dv += p[r * LP + j] * y[r][n];
            }
            sums.k[j][n] = dk;
            sums.v[j][n] = dv;
        }
    for (int r = 0; r < M; r++)
        for (int n = 0; n < ND; n++) store(gq + r * row + n * W, dq[r][n]);
}

using Vectors = std::make_integer_sequence<int, NL>;

// out[b, i, h] = sum over j <= i of p[b, h, i, j] v[b, j, h], where p is the softmax of scale q k.
extern "C" void forward(const float* q, const float* k, const float* v, float* p, float* out, long batch, long heads,
                        float scale, int threads) {
    const long row = heads * D;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long b = 0; b < batch; b++) {
        Turned keys;
        for (long h = 0; h < heads; h++) {
            const long at = b * L * row + h * D;
            float* weights = p + (b * heads + h) * L * LP;
            keys.read(k + at, row);
            blocks(
                [&](int i, auto n, auto m) {
                    const long here = at + i * row;
                    attend<n.value, m.value>(i, q + here, keys, v + at, weights + i * LP, out + here, row, scale);
                },
                Vectors());
        }
    }
}

// Gradients of q, k and v, given that of out.
extern "C" void backward(const float* q, const float* k, const float* v, const float* p, const float* g, float* gq,
                         float* gk, float* gv, long batch, long heads, float scale, int threads) {
    const long row = heads * D;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long b = 0; b < batch; b++) {
        Turned values;
        for (long h = 0; h < heads; h++) {
            const long at = b * L * row + h * D;
            const float* weights = p + (b * heads + h) * L * LP;
            Sums sums;
            values.read(v + at, row);
            blocks(
                [&](int i, auto n, auto m) {
                    const long here = at + i * row;
                    go_back<n.value, m.value>(i, q + here, k + at, values, weights + i * LP, g + here, gq + here, row,
                                              sums, scale);
                },
                Vectors());
            for (int j = 0; j < L; j++)
                for (int n = 0; n < ND; n++) {
                    store(gk + at + j * row + n * W, sums.k[j][n]);
                    store(gv + at + j * row + n * W, sums.v[j][n]);
                }
        }
    }
}
