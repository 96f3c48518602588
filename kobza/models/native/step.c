/* One step of a Llama-type model for a few tokens: every weight is read once and in order, which is all that decoding
 * on a processor costs. The plain twin is `kobza/models/bare.py`. Weights are float32 or bfloat16, sums float32.
 * The caller (bare.py) vouches for the addresses of the weights; sizes of all buffers are checked here. Limited API. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define ROWS 8 /* tokens that share one reading of a weight */
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

/* sizes, in the order in which bare.py writes them. Keys and values lie in pages (layers, stock, kv_heads, page,
 * head_width); a table (batch, pages) tells which page of the stock holds positions page n .. page (n + 1) - 1 of a row. A
 * cache in one piece is one page a row. `nearest`: keys that a head attends to, 0 for all. */
typedef struct {
    int64_t width, heads, kv_heads, head_width, ffn, page, pages, stock, batch, is_half, nearest;
} Sizes;

/* what attention heeds besides: the table; which of the tokens fed together each may see (fed, fed), NULL for those
 * before it; where shares of attention and counts of more than the mean share are added up, (2, layers, batch,
 * kv_heads, pages page), or NULL */
typedef struct {
    const int64_t *table;
    const uint8_t *visible;
    float *weight;
    int64_t apart; /* from a share to its count */
} Care;

/* addresses of one block, in the order in which bare.py writes them; 0 where the family has no such weight */
typedef struct {
    const float *norm1, *norm2, *q_norm, *k_norm, *q_bias, *k_bias, *v_bias, *o_bias;
    const void *q, *k, *v, *o, *gate, *up, *down;
} Block;

#define SUM(a) (((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7])) + \
                ((a[8] + a[9]) + (a[10] + a[11])) + ((a[12] + a[13]) + (a[14] + a[15])))

INLINE float of_half(uint16_t half)
{
    uint32_t word = (uint32_t)half << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

/* dot products of one row of weights with n rows of x, each `width` long, `width` apart */
#define DOT(NAME, TYPE, LOAD, ONE)                                                                                   \
    INLINE void NAME(const TYPE *restrict w, const float *restrict x, float *restrict out, int64_t width,            \
                     int64_t stride, const int n)                                                                    \
    {                                                                                                                \
        lanes sum[ROWS * 4];                                                                                         \
        const int chains = n > 1 ? 1 : 4; /* independent sums hide the latency of an addition */                     \
        for (int i = 0; i < n * chains; i++)                                                                         \
            sum[i] = (lanes){0};                                                                                     \
        int64_t c = 0;                                                                                               \
        for (; c + chains * LANES <= width; c += chains * LANES)                                                     \
            for (int j = 0; j < chains; j++) {                                                                       \
                const int64_t at = c + j * LANES;                                                                    \
                __builtin_prefetch(w + at + 512, 0, 0);                                                              \
                const lanes weight = LOAD(w + at);                                                                   \
                for (int i = 0; i < n; i++)                                                                          \
                    sum[i * chains + j] += weight * *(const lanes *)(x + i * width + at);                            \
            }                                                                                                        \
        for (int i = 0; i < n; i++) {                                                                                \
            lanes all = sum[i * chains];                                                                             \
            for (int j = 1; j < chains; j++)                                                                         \
                all += sum[i * chains + j];                                                                          \
            float total = SUM(all);                                                                                  \
            for (int64_t r = c; r < width; r++)                                                                      \
                total += ONE(w[r]) * x[i * width + r];                                                               \
            out[i * stride] = total;                                                                                 \
        }                                                                                                            \
    }
#define LOAD_FLOAT(p) (*(const lanes *)(p))
#define LOAD_HALF(p) ((lanes)(__builtin_convertvector(*(const halves *)(p), words) << 16))
#define ONE_FLOAT(x) (x)
DOT(dot_float, float, LOAD_FLOAT, ONE_FLOAT)
DOT(dot_half, uint16_t, LOAD_HALF, of_half)

#define CASE(N)                                                                                                      \
    case N:                                                                                                          \
        for (int64_t r = 0; r < outputs; r++)                                                                        \
            if (is_half)                                                                                             \
                dot_half((const uint16_t *)w + r * inputs, x, out + r, inputs, outputs, N);                          \
            else                                                                                                     \
                dot_float((const float *)w + r * inputs, x, out + r, inputs, outputs, N);                            \
        break;

/* out (n, outputs) = x (n, inputs) times w (outputs, inputs) transposed, plus bias */
FOR_EVERY_PROCESSOR
static void product(const void *w, const float *bias, const float *x, float *out, int64_t n, int64_t inputs,
                    int64_t outputs, int is_half)
{
    for (int64_t first = 0; first < n; first += ROWS, x += ROWS * inputs, out += ROWS * outputs) {
        const int64_t some = n - first < ROWS ? n - first : ROWS;
        switch (some) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
        for (int64_t i = 0; bias && i < some; i++)
            for (int64_t r = 0; r < outputs; r++)
                out[i * outputs + r] += bias[r];
    }
}

/* out = x / root mean square of x, times weight; rows of `width` */
static void normalize(const float *x, const float *weight, float *out, int64_t rows, int64_t width, float eps)
{
    for (int64_t i = 0; i < rows; i++, x += width, out += width) {
        float squares[8] = {0}, total = 0;
        for (int64_t c = 0; c < width; c++)
            squares[c & 7] += x[c] * x[c];
        for (int j = 0; j < 8; j++)
            total += squares[j];
        const float factor = 1.0f / sqrtf(total / (float)width + eps);
        for (int64_t c = 0; c < width; c++)
            out[c] = weight[c] * (x[c] * factor);
    }
}

/* rotate the halves of every head of one token */
static void rotate(float *x, int64_t heads, int64_t width, const float *cos, const float *sin)
{
    const int64_t half = width / 2;
    for (int64_t h = 0; h < heads; h++, x += width)
        for (int64_t i = 0; i < half; i++) {
            const float a = x[i], b = x[i + half];
            x[i] = a * cos[i] - b * sin[i];
            x[i + half] = b * cos[i + half] + a * sin[i + half];
        }
}

/* move the `count` largest of n numbers to the front (quickselect); return the least of them */
static float largest_of(float *x, int64_t n, int64_t count)
{
    int64_t low = 0, high = n - 1;
    while (low < high) {
        const float pivot = x[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (x[i] > pivot)
                i++;
            while (x[j] < pivot)
                j--;
            if (i <= j) {
                const float other = x[i];
                x[i++] = x[j];
                x[j--] = other;
            }
        }
        if (count - 1 <= j)
            high = j;
        else if (count - 1 >= i)
            low = i;
        else
            break;
    }
    return x[count - 1];
}

/* one head of one token: out = softmax(q . keys * scale) times values, over `seen` positions in pages; `shares` has room
 * for 2 seen numbers, `visible` is for the last of the positions from `at` on */
FOR_EVERY_PROCESSOR
static void attend(const Sizes *s, const float *q, const float *keys, const float *values, float *out, float *shares,
                   const int64_t *table, int64_t group, const uint8_t *visible, int64_t at, int64_t seen, float *weight,
                   int64_t apart, float scale)
{
    const int64_t E = s->head_width, P = s->page;
    float largest = -INFINITY, least = -INFINITY, total = 0;
    for (int64_t first = 0; first < seen; first += P) {
        const float *page = keys + (table[first / P] * s->kv_heads + group) * P * E;
        for (int64_t j = first; j < seen && j < first + P; j++) {
            dot_float(page + (j - first) * E, q, shares + j, E, 1, 1);
            shares[j] *= scale;
        }
    }
    for (int64_t j = at; visible && j < seen; j++)
        if (!visible[j - at])
            shares[j] = -INFINITY;
    if (s->nearest && s->nearest < seen) {
        memcpy(shares + seen, shares, (size_t)seen * 4);
        least = largest_of(shares + seen, seen, s->nearest);
    }
    for (int64_t j = 0; j < seen; j++)
        largest = shares[j] > largest ? shares[j] : largest;
    for (int64_t j = 0; j < seen; j++)
        total += shares[j] = shares[j] < least ? 0 : expf(shares[j] - largest);
    for (int64_t c = 0; c < E; c++)
        out[c] = 0;
    for (int64_t first = 0; first < seen; first += P) {
        const float *page = values + (table[first / P] * s->kv_heads + group) * P * E;
        for (int64_t j = first; j < seen && j < first + P; j++) {
            const float share = shares[j] / total;
            if (share == 0)
                continue;
            for (int64_t c = 0; c < E; c++)
                out[c] += share * page[(j - first) * E + c];
        }
    }
    for (int64_t j = 0; weight && j < seen; j++) {
        weight[j] += shares[j] / total;
        weight[apart + j] += shares[j] / total * (float)seen > 1;
    }
}

typedef struct {
    float *state, *q, *k, *v, *mixed, *gate, *up, *shares;
} Room;

/* one block for tokens x (batch, fed, width), the first of which is stored at `at` */
static void block(const Block *w, const Sizes *s, const Room *r, const Care *care, float *x, float *keys,
                  float *values, float *weight, const float *cos, const float *sin, int64_t fed, int64_t at, float eps,
                  float scale)
{
    const int64_t n = s->batch * fed, E = s->head_width, HE = s->heads * E, KE = s->kv_heads * E;
    const int is_half = (int)s->is_half;
    normalize(x, w->norm1, r->state, n, s->width, eps);
    product(w->q, w->q_bias, r->state, r->q, n, s->width, HE, is_half);
    product(w->k, w->k_bias, r->state, r->k, n, s->width, KE, is_half);
    product(w->v, w->v_bias, r->state, r->v, n, s->width, KE, is_half);
    if (w->q_norm) {
        normalize(r->q, w->q_norm, r->q, n * s->heads, E, eps);
        normalize(r->k, w->k_norm, r->k, n * s->kv_heads, E, eps);
    }
    for (int64_t i = 0; i < n; i++) {
        const int64_t row = i / fed, t = i % fed;
        rotate(r->q + i * HE, s->heads, E, cos + t * E, sin + t * E);
        rotate(r->k + i * KE, s->kv_heads, E, cos + t * E, sin + t * E);
        const int64_t page = care->table[row * s->pages + (at + t) / s->page];
        for (int64_t g = 0; g < s->kv_heads; g++) {
            const int64_t place = ((page * s->kv_heads + g) * s->page + (at + t) % s->page) * E;
            memcpy(keys + place, r->k + i * KE + g * E, (size_t)E * 4);
            memcpy(values + place, r->v + i * KE + g * E, (size_t)E * 4);
        }
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < s->heads; h++) {
            const int64_t group = h / (s->heads / s->kv_heads), row = i / fed, t = i % fed;
            float *watched = weight ? weight + (row * s->kv_heads + group) * s->pages * s->page : NULL;
            attend(s, r->q + i * HE + h * E, keys, values, r->mixed + i * HE + h * E, r->shares,
                   care->table + row * s->pages, group, care->visible ? care->visible + t * fed : NULL, at, at + t + 1,
                   watched, care->apart, scale);
        }
    product(w->o, w->o_bias, r->mixed, r->state, n, HE, s->width, is_half);
    for (int64_t c = 0; c < n * s->width; c++)
        x[c] += r->state[c];
    normalize(x, w->norm2, r->state, n, s->width, eps);
    product(w->gate, NULL, r->state, r->gate, n, s->width, s->ffn, is_half);
    product(w->up, NULL, r->state, r->up, n, s->width, s->ffn, is_half);
    for (int64_t c = 0; c < n * s->ffn; c++)
        r->gate[c] = r->gate[c] / (1.0f + expf(-r->gate[c])) * r->up[c];
    product(w->down, NULL, r->gate, r->state, n, s->ffn, s->width, is_half);
    for (int64_t c = 0; c < n * s->width; c++)
        x[c] += r->state[c];
}

static int run(const Block *w, const Sizes *s, const Care *care, float *x, float *keys, float *values,
               const float *cos, const float *sin, int64_t fed, int64_t at, int64_t first, int64_t last, float eps,
               float scale)
{
    const int64_t n = s->batch * fed, HE = s->heads * s->head_width, KE = s->kv_heads * s->head_width;
    const int64_t cached = s->stock * KE * s->page, watched = s->batch * s->kv_heads * s->pages * s->page;
    float *all = malloc((size_t)(n * (s->width + 2 * HE + 2 * KE + 2 * s->ffn) + 2 * (at + fed)) * 4);
    if (!all)
        return -1;
    Room r;
    r.state = all;
    r.q = r.state + n * s->width;
    r.mixed = r.q + n * HE;
    r.k = r.mixed + n * HE;
    r.v = r.k + n * KE;
    r.gate = r.v + n * KE;
    r.up = r.gate + n * s->ffn;
    r.shares = r.up + n * s->ffn;
    for (int64_t layer = first; layer < last; layer++)
        block(w + layer, s, &r, care, x, keys + layer * cached, values + layer * cached,
              care->weight ? care->weight + layer * watched : NULL, cos, sin, fed, at, eps, scale);
    free(all);
    return 0;
}

/* whether all pages that positions 0 .. end - 1 lie in are there */
static int is_sound(const Sizes *s, const int64_t *table, int64_t end)
{
    if (end > s->pages * s->page)
        return 0;
    for (int64_t row = 0; row < s->batch; row++)
        for (int64_t n = 0; n * s->page < end; n++)
            if (table[row * s->pages + n] < 0 || table[row * s->pages + n] >= s->stock)
                return 0;
    return 1;
}

/* blocks(addresses, sizes, x, keys, values, cos, sin, table, visible, weight, fed, at, first, last, eps, scale) */
static PyObject *py_blocks(PyObject *self, PyObject *args)
{
    Py_buffer w, sizes, x, keys, values, cos, sin, table, visible, weight;
    long long fed, at, first, last;
    double eps, scale;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*w*w*y*y*y*z*z*LLLLdd", &w, &sizes, &x, &keys, &values, &cos, &sin, &table,
                          &visible, &weight, &fed, &at, &first, &last, &eps, &scale))
        return NULL;
    int state = -2;
    Sizes s;
    if (sizes.len == sizeof s) {
        memcpy(&s, sizes.buf, sizeof s);
        const int64_t layers = w.len / (int64_t)sizeof(Block), row = s.head_width * 4;
        const int64_t cached = layers * s.stock * s.kv_heads * s.page * row;
        const int64_t watched = layers * s.batch * s.kv_heads * s.pages * s.page;
        const Care care = {table.buf, visible.buf, weight.buf, watched};
        if (fed > 0 && at >= 0 && s.page > 0 && s.nearest >= 0 && 0 <= first && first <= last && last <= layers &&
            x.len == s.batch * fed * s.width * 4 && keys.len == cached && values.len == cached &&
            cos.len == fed * row && sin.len == fed * row && s.kv_heads > 0 && s.heads % s.kv_heads == 0 &&
            table.len == s.batch * s.pages * 8 && is_sound(&s, table.buf, at + fed) &&
            (!visible.buf || visible.len == fed * fed) && (!weight.buf || weight.len == 2 * watched * 4)) {
            Py_BEGIN_ALLOW_THREADS
            state = run(w.buf, &s, &care, x.buf, keys.buf, values.buf, cos.buf, sin.buf, fed, at, first, last,
                        (float)eps, (float)scale);
            Py_END_ALLOW_THREADS
        }
    }
    Py_buffer *held[] = {&w, &sizes, &x, &keys, &values, &cos, &sin, &table, &visible, &weight};
    for (int i = 0; i < 10; i++)
        PyBuffer_Release(held[i]);
    if (state == -1)
        return PyErr_NoMemory();
    if (state) {
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit each other");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* times(address of weights, is_half, x (n, inputs), out (n, outputs), n) */
static PyObject *py_times(PyObject *self, PyObject *args)
{
    Py_buffer x, out;
    unsigned long long address;
    int is_half;
    long long n;
    (void)self;
    if (!PyArg_ParseTuple(args, "Kpy*w*L", &address, &is_half, &x, &out, &n))
        return NULL;
    if (n > 0 && x.len % (4 * n) == 0 && out.len % (4 * n) == 0) {
        Py_BEGIN_ALLOW_THREADS
        product((const void *)(uintptr_t)address, NULL, x.buf, out.buf, n, x.len / (4 * n), out.len / (4 * n), is_half);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit each other");
    }
    PyBuffer_Release(&x);
    PyBuffer_Release(&out);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"blocks", py_blocks, METH_VARARGS, "Run blocks first .. last-1 over x in place, keys and values stored at `at`."},
    {"times", py_times, METH_VARARGS, "out = x times weights transposed."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_step", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__step(void)
{
    return PyModule_Create(&module);
}
