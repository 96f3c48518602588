/* The Python face of the inner loops: buffers in, bytes out, the GIL released around the work. Limited API. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "glyphs.h"
#include "kernels.h"

#include <string.h>

#define LARGEST ((Py_ssize_t)1 << 30)

static PyObject *refuse(int state, const char *what)
{
    if (state == KERNEL_NO_MEMORY)
        return PyErr_NoMemory();
    PyErr_SetString(PyExc_ValueError, what);
    return NULL;
}

static int is_sound(Py_ssize_t size)
{
    if (size >= 0 && size <= LARGEST)
        return 1;
    PyErr_SetString(PyExc_ValueError, "a block has 0 to 2^30 bytes");
    return 0;
}

static PyObject *py_crc32c(PyObject *self, PyObject *args)
{
    Py_buffer data;
    unsigned int value = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*|I", &data, &value))
        return NULL;
    if (data.len < 4096) {
        value = crc32c_update(value, data.buf, (size_t)data.len);
    } else {
        Py_BEGIN_ALLOW_THREADS
        value = crc32c_update(value, data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(value);
}

/* bytes of `size`, cut from a buffer that is then freed */
static PyObject *taken(uint8_t *out, size_t size)
{
    PyObject *result = PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)size);
    PyMem_Free(out);
    return result;
}

static PyObject *py_bpe_learn(PyObject *self, PyObject *args)
{
    Py_buffer data;
    int most, count = 0, state = KERNEL_NO_MEMORY;
    unsigned int least;
    uint8_t pairs[3 * 255];
    size_t size = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*iI", &data, &most, &least))
        return NULL;
    uint8_t *out = is_sound(data.len) ? PyMem_Malloc((size_t)data.len + 32) : NULL;
    if (out) {
        Py_BEGIN_ALLOW_THREADS
        most = most > 255 ? 255 : most;
        state = bpe_learn(data.buf, (size_t)data.len, most, least, pairs, &count, out, &size);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    if (state != KERNEL_OK) {
        PyMem_Free(out);
        return PyErr_Occurred() ? NULL : refuse(state, "");
    }
    PyObject *merged = taken(out, size);
    return merged ? Py_BuildValue("y#N", (const char *)pairs, (Py_ssize_t)(3 * count), merged) : NULL;
}

static PyObject *py_bpe_apply(PyObject *self, PyObject *args)
{
    Py_buffer data, pairs;
    int state = KERNEL_NO_MEMORY;
    size_t size = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*", &data, &pairs))
        return NULL;
    uint8_t *out = is_sound(data.len) ? PyMem_Malloc((size_t)data.len + 32) : NULL;
    if (out) {
        Py_BEGIN_ALLOW_THREADS
        state = bpe_apply(data.buf, (size_t)data.len, pairs.buf, (int)(pairs.len / 3), out, &size);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&pairs);
    if (state == KERNEL_OK)
        return taken(out, size);
    PyMem_Free(out);
    return PyErr_Occurred() ? NULL : refuse(state, "");
}

static PyObject *py_bpe_expand(PyObject *self, PyObject *args)
{
    Py_buffer data, pairs;
    Py_ssize_t size;
    int state = KERNEL_CORRUPT;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*n", &data, &pairs, &size))
        return NULL;
    PyObject *result = NULL;
    if (is_sound(size) && pairs.len <= 3 * 255 && (result = PyBytes_FromStringAndSize(NULL, size))) {
        uint8_t *out = (uint8_t *)PyBytes_AsString(result);
        Py_BEGIN_ALLOW_THREADS
        state = bpe_expand(data.buf, (size_t)data.len, pairs.buf, (int)(pairs.len / 3), out, (size_t)size);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&pairs);
    if (state == KERNEL_OK)
        return result;
    Py_XDECREF(result);
    return PyErr_Occurred() ? NULL : refuse(state, "the merges do not expand to that many bytes");
}

static PyObject *py_ulz_encode(PyObject *self, PyObject *args)
{
    Py_buffer data;
    int level, state = KERNEL_NO_MEMORY;
    size_t size = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*i", &data, &level))
        return NULL;
    uint8_t *out = is_sound(data.len) ? PyMem_Malloc(ulz_bound((size_t)data.len)) : NULL;
    if (out) {
        Py_BEGIN_ALLOW_THREADS
        state = ulz_encode(data.buf, (size_t)data.len, level, out, &size);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    if (state == KERNEL_OK)
        return taken(out, size);
    PyMem_Free(out);
    return PyErr_Occurred() ? NULL : refuse(state, "");
}

static PyObject *py_mixing_encode(PyObject *self, PyObject *args)
{
    Py_buffer data;
    int state = KERNEL_NO_MEMORY;
    size_t size = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*", &data))
        return NULL;
    size_t room = (size_t)data.len * 2 + 16; /* a bit costs at most 12 bits */
    uint8_t *out = is_sound(data.len) ? PyMem_Malloc(room) : NULL;
    if (out) {
        Py_BEGIN_ALLOW_THREADS
        state = mixing_encode(data.buf, (size_t)data.len, out, room, &size);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    if (state == KERNEL_OK)
        return taken(out, size);
    PyMem_Free(out);
    return PyErr_Occurred() ? NULL : refuse(state, "");
}

typedef int (*Expander)(const uint8_t *, size_t, uint8_t *, size_t);

static PyObject *expanded(PyObject *args, Expander expand)
{
    Py_buffer data;
    Py_ssize_t size;
    int state = KERNEL_CORRUPT;
    if (!PyArg_ParseTuple(args, "y*n", &data, &size))
        return NULL;
    PyObject *result = NULL;
    if (is_sound(size) && (result = PyBytes_FromStringAndSize(NULL, size))) {
        uint8_t *out = (uint8_t *)PyBytes_AsString(result);
        Py_BEGIN_ALLOW_THREADS
        state = expand(data.buf, (size_t)data.len, out, (size_t)size);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    if (state == KERNEL_OK)
        return result;
    Py_XDECREF(result);
    return PyErr_Occurred() ? NULL : refuse(state, "the stream does not give that many bytes");
}

static PyObject *py_ulz_decode(PyObject *self, PyObject *args)
{
    (void)self;
    return expanded(args, ulz_decode);
}

static PyObject *py_mixing_decode(PyObject *self, PyObject *args)
{
    (void)self;
    return expanded(args, mixing_decode);
}

#define TOGETHER "kobza.mixing"

static void forget(PyObject *capsule)
{
    together_free(PyCapsule_GetPointer(capsule, TOGETHER));
}

static PyObject *py_mixing_open(PyObject *self, PyObject *args)
{
    Py_ssize_t size;
    int streams;
    (void)self;
    if (!PyArg_ParseTuple(args, "ni", &size, &streams))
        return NULL;
    if (size < 1 || streams < 1 || size > LARGEST || streams > LARGEST / size)
        return refuse(KERNEL_CORRUPT, "1 to 2^30 bytes in all texts");
    Together *made = together_make((size_t)size, streams);
    return made ? PyCapsule_New(made, TOGETHER, forget) : PyErr_NoMemory();
}

static PyObject *py_mixing_turn(PyObject *self, PyObject *args)
{
    PyObject *capsule;
    int stream;
    (void)self;
    if (!PyArg_ParseTuple(args, "Oi", &capsule, &stream))
        return NULL;
    Together *t = PyCapsule_GetPointer(capsule, TOGETHER);
    if (!t)
        return NULL;
    if (together_turn(t, stream) != KERNEL_OK)
        return refuse(KERNEL_CORRUPT, "a turn is made between two bytes, to a text that was opened");
    Py_RETURN_NONE;
}

static PyObject *py_mixing_predict(PyObject *self, PyObject *capsule)
{
    Together *t = PyCapsule_GetPointer(capsule, TOGETHER);
    (void)self;
    return t ? PyLong_FromLong(together_predict(t)) : NULL;
}

static PyObject *py_mixing_update(PyObject *self, PyObject *args)
{
    PyObject *capsule;
    int bit;
    (void)self;
    if (!PyArg_ParseTuple(args, "Oi", &capsule, &bit))
        return NULL;
    Together *t = PyCapsule_GetPointer(capsule, TOGETHER);
    if (!t)
        return NULL;
    if (together_update(t, bit != 0) != KERNEL_OK)
        return refuse(KERNEL_CORRUPT, "a bit is learned once, after it was predicted, up to the end of its text");
    Py_RETURN_NONE;
}

/* 1 when a shape is one and its samples are `size` bytes */
static int is_picture(const PictureShape *s, Py_ssize_t size)
{
    if (s->width > 0 && s->height > 0 && s->channels > 0 && s->channels <= 4 && s->depth > 0 && s->depth <= 16 &&
        s->mode >= 0 && s->mode <= PICTURE_INDEXED && s->width <= 1 << 24 && s->height <= 1 << 24 &&
        (int64_t)s->width * s->height * s->channels * (s->depth > 8 ? 2 : 1) == (int64_t)size)
        return 1;
    PyErr_SetString(PyExc_ValueError, "the picture's shape does not fit its samples");
    return 0;
}

static PyObject *py_picture_encode(PyObject *self, PyObject *args)
{
    Py_buffer data;
    PictureShape s;
    int state = KERNEL_NO_MEMORY;
    size_t size = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*iiiii", &data, &s.width, &s.height, &s.channels, &s.depth, &s.mode))
        return NULL;
    size_t room = (size_t)data.len * 8 + 4096; /* no sample has more than 32 decisions of 12 bits */
    uint8_t *out = is_sound(data.len) && is_picture(&s, data.len) ? PyMem_Malloc(room) : NULL;
    if (out) {
        Py_BEGIN_ALLOW_THREADS
        state = picture_encode(data.buf, &s, out, room, &size);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    if (state == KERNEL_OK)
        return taken(out, size);
    PyMem_Free(out);
    return PyErr_Occurred() ? NULL : refuse(state, "");
}

static PyObject *py_picture_decode(PyObject *self, PyObject *args)
{
    Py_buffer data;
    PictureShape s;
    int state = KERNEL_CORRUPT;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*iiiii", &data, &s.width, &s.height, &s.channels, &s.depth, &s.mode))
        return NULL;
    PyObject *result = NULL;
    int64_t size = (int64_t)s.width * s.height; /* below 2^62 */
    size = size < 0 || size > LARGEST ? LARGEST + 1 : size * s.channels * (s.depth > 8 ? 2 : 1);
    if (is_sound((Py_ssize_t)size) && is_picture(&s, (Py_ssize_t)size) &&
        (result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size))) {
        uint8_t *out = (uint8_t *)PyBytes_AsString(result);
        Py_BEGIN_ALLOW_THREADS
        state = picture_decode(data.buf, (size_t)data.len, &s, out);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    if (state == KERNEL_OK)
        return result;
    Py_XDECREF(result);
    return PyErr_Occurred() ? NULL : refuse(state, "the payload is no picture");
}

/* copies of what a call hands in, so that they are aligned */
typedef struct {
    GlyphShape *shapes;
    uint64_t *rows;
    size_t count, rows_bytes;
} Glyphs;

static void glyphs_forget(Glyphs *g)
{
    PyMem_Free(g->shapes);
    PyMem_Free(g->rows);
}

/* 1 when the shapes are sound and there is memory for their rows */
static int glyphs_take(Glyphs *g, const Py_buffer *shapes)
{
    size_t rows = 0;
    *g = (Glyphs){.count = (size_t)shapes->len / sizeof *g->shapes};
    if (!(g->shapes = PyMem_Malloc((size_t)shapes->len + 8)))
        return PyErr_NoMemory() != NULL;
    memcpy(g->shapes, shapes->buf, g->count * sizeof *g->shapes);
    int is_good = shapes->len % (Py_ssize_t)sizeof *g->shapes == 0;
    for (size_t i = 0; i < g->count; i++) {
        is_good &= g->shapes[i].left + g->shapes[i].width <= 64 && (g->shapes[i].width || !g->shapes[i].height);
        rows += g->shapes[i].height;
    }
    if (!is_good || rows > (size_t)LARGEST / 8) {
        PyErr_SetString(PyExc_ValueError, "a glyph lies outside a canvas of 64 columns");
        return 0;
    }
    g->rows_bytes = 8 * rows;
    g->rows = PyMem_Calloc(rows + 1, 8);
    return g->rows ? 1 : PyErr_NoMemory() != NULL;
}

static PyObject *py_glyphs_encode(PyObject *self, PyObject *args)
{
    Py_buffer shapes, rows;
    Glyphs g;
    int state = KERNEL_NO_MEMORY;
    size_t size = 0;
    uint8_t *out = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*", &shapes, &rows))
        return NULL;
    int is_good = glyphs_take(&g, &shapes);
    if (is_good && g.rows_bytes != (size_t)rows.len) {
        PyErr_SetString(PyExc_ValueError, "the rows are not those of the glyphs");
    } else if (is_good) {
        size_t room = 12 * (size_t)rows.len + 16; /* a pixel costs at most 12 bits */
        memcpy(g.rows, rows.buf, (size_t)rows.len);
        if ((out = PyMem_Malloc(room))) {
            Py_BEGIN_ALLOW_THREADS
            state = glyphs_encode(g.shapes, g.count, g.rows, out, room, &size);
            Py_END_ALLOW_THREADS
        }
    }
    glyphs_forget(&g);
    PyBuffer_Release(&shapes);
    PyBuffer_Release(&rows);
    if (state == KERNEL_OK)
        return taken(out, size);
    PyMem_Free(out);
    return PyErr_Occurred() ? NULL : refuse(state, "");
}

static PyObject *py_glyphs_decode(PyObject *self, PyObject *args)
{
    Py_buffer data, shapes;
    Glyphs g;
    PyObject *result = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*", &data, &shapes))
        return NULL;
    if (glyphs_take(&g, &shapes)) {
        int state;
        Py_BEGIN_ALLOW_THREADS
        state = glyphs_decode(data.buf, (size_t)data.len, g.shapes, g.count, g.rows);
        Py_END_ALLOW_THREADS
        result = state == KERNEL_OK ? PyBytes_FromStringAndSize((const char *)g.rows, (Py_ssize_t)g.rows_bytes)
                                    : refuse(state, "the payload is no glyphs");
    }
    glyphs_forget(&g);
    PyBuffer_Release(&data);
    PyBuffer_Release(&shapes);
    return result;
}

static PyMethodDef methods[] = {
    {"crc32c", py_crc32c, METH_VARARGS, "crc32c(data, value=0) -> int"},
    {"bpe_learn", py_bpe_learn, METH_VARARGS, "bpe_learn(data, most, least) -> (pairs, merged)"},
    {"bpe_apply", py_bpe_apply, METH_VARARGS, "bpe_apply(data, pairs) -> bytes"},
    {"bpe_expand", py_bpe_expand, METH_VARARGS, "bpe_expand(data, pairs, size) -> bytes"},
    {"ulz_encode", py_ulz_encode, METH_VARARGS, "ulz_encode(data, level) -> bytes"},
    {"ulz_decode", py_ulz_decode, METH_VARARGS, "ulz_decode(data, size) -> bytes"},
    {"mixing_encode", py_mixing_encode, METH_VARARGS, "mixing_encode(data) -> bytes"},
    {"mixing_decode", py_mixing_decode, METH_VARARGS, "mixing_decode(data, size) -> bytes"},
    {"mixing_open", py_mixing_open, METH_VARARGS, "mixing_open(size, streams) -> texts that learn together"},
    {"mixing_turn", py_mixing_turn, METH_VARARGS, "mixing_turn(texts, stream)"},
    {"mixing_predict", py_mixing_predict, METH_O, "mixing_predict(texts) -> probability of a 1 [1/65536]"},
    {"mixing_update", py_mixing_update, METH_VARARGS, "mixing_update(texts, bit)"},
    {"picture_encode", py_picture_encode, METH_VARARGS, "picture_encode(samples, width, height, channels, depth, mode)"},
    {"picture_decode", py_picture_decode, METH_VARARGS, "picture_decode(data, width, height, channels, depth, mode)"},
    {"glyphs_encode", py_glyphs_encode, METH_VARARGS, "glyphs_encode(shapes, rows) -> bytes"},
    {"glyphs_decode", py_glyphs_decode, METH_VARARGS, "glyphs_decode(data, shapes) -> rows"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", "Inner loops of the codecs, compiled.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    crc32c_prepare();
    mixing_prepare();
    return PyModule_Create(&module);
}
