// The emulated card as a process: it owns the memory, reads orders from its input and answers reads on its output.
// Orders are little-endian words of 64 bits; `emulated.rs` writes them. The first argument seeds the order of threads.

#include "kernels.cu"

namespace {

using emulated::fail;

struct Memory {
    std::unique_ptr<char[]> at;
    size_t bytes;
};

std::map<uint64_t, Memory> memories;

void take(void* to, size_t bytes) {
    if (bytes > 0 && fread(to, 1, bytes, stdin) != bytes) fail("the orders end in the middle of one");
}

uint64_t word() {
    uint64_t value;
    take(&value, sizeof value);
    return value;
}

std::string text() {
    std::string value(word(), ' ');
    take(value.data(), value.size());
    return value;
}

// `bytes` of a memory from `at` on, refused where they do not lie in it.
char* part(const char* what, uint64_t id, uint64_t at, uint64_t bytes) {
    auto found = memories.find(id);
    if (found == memories.end()) fail(std::string(what) + ": no memory " + std::to_string(id));
    if (at > found->second.bytes || bytes > found->second.bytes - at)
        fail(std::string(what) + ": bytes " + std::to_string(at) + " to " + std::to_string(at + bytes) + " of memory " +
             std::to_string(id) + " with " + std::to_string(found->second.bytes));
    return found->second.at.get() + at;
}

// Arguments: a letter, then one word, or of memories number, place, and the bytes that the kernel writes whole.
void launch() {
    emulated::running = text();
    uint64_t blocks = word(), threads = word(), count = word();
    std::vector<emulated::Argument> words;
    for (uint64_t i = 0; i < count; i++) {
        emulated::Argument a{(char)word(), 0};
        if (a.kind == 'm') {
            uint64_t id = word(), at = word(), written = word();
            char* from = part(emulated::running.c_str(), id, at, written);
            memset(from, 0xFF, written);
            a = {'p', (uint64_t)(uintptr_t)from};
        } else {
            a.word = word();
        }
        words.push_back(a);
    }
    auto found = emulated::kernels().find(emulated::running);
    if (found == emulated::kernels().end()) fail("no kernel " + emulated::running);
    found->second.call(found->second, words, (unsigned)blocks, (unsigned)threads);
}

// A matrix of a product, row by row; transposed, its rows are the product's columns.
struct Matrix {
    const float* at;
    uint64_t pitch, stride;
    bool turned;
};

Matrix matrix(const char* name, uint64_t batch, uint64_t rows, uint64_t columns) {
    uint64_t id = word(), at = word(), pitch = word(), stride = word(), turned = word();
    if (turned) std::swap(rows, columns);
    if (pitch < columns) fail(std::string("product: rows of ") + name + " overlap");
    uint64_t reach = rows * columns == 0 ? 0 : (batch - 1) * stride + (rows - 1) * pitch + columns;
    return {(const float*)part(name, id, at, 4 * reach), pitch, stride, turned != 0};
}

// c = beta·c + a·b for every batch: a [m, k], b [k, n], c [m, n]. Sums in doubles.
__attribute__((no_sanitize("address"), optimize("O3"))) void product() {
    uint64_t batch = word(), m = word(), n = word(), k = word(), keep = word();
    Matrix a = matrix("a", batch, m, k), b = matrix("b", batch, k, n), c = matrix("c", batch, m, n);
    std::vector<double> sums(n);
    for (uint64_t i = 0; i < batch; i++) {
        const float *left = a.at + i * a.stride, *right = b.at + i * b.stride;
        float* out = const_cast<float*>(c.at) + i * c.stride;
        for (uint64_t row = 0; row < m; row++) {
            double* s = sums.data();
            for (uint64_t j = 0; j < n; j++) s[j] = 0.0;
            for (uint64_t l = 0; l < k && !b.turned; l++) {
                double v = a.turned ? left[l * a.pitch + row] : left[row * a.pitch + l];
                for (uint64_t j = 0; j < n; j++) s[j] += v * right[l * b.pitch + j];
            }
            for (uint64_t j = 0; j < n && b.turned; j++)
                for (uint64_t l = 0; l < k; l++)
                    s[j] += (double)(a.turned ? left[l * a.pitch + row] : left[row * a.pitch + l]) * right[j * b.pitch + l];
            for (uint64_t j = 0; j < n; j++) {
                float& to = out[row * c.pitch + j];
                to = keep ? (float)(to + s[j]) : (float)s[j];
            }
        }
    }
}

bool order() {
    char letter;
    if (fread(&letter, 1, 1, stdin) != 1) return false;
    switch (letter) {
    case 'A': {
        uint64_t id = word(), bytes = word();
        memories[id] = Memory{std::unique_ptr<char[]>(new char[bytes]), bytes};
        memset(memories[id].at.get(), 0xFF, bytes);
        return true;
    }
    case 'F': return memories.erase(word()) == 1 || (fail("release: no such memory"), false);
    case 'W': {
        uint64_t id = word(), at = word(), bytes = word();
        take(part("write", id, at, bytes), bytes);
        return true;
    }
    case 'R': {
        uint64_t id = word(), at = word(), bytes = word();
        if (fwrite(part("read", id, at, bytes), 1, bytes, stdout) != bytes || fflush(stdout) != 0) fail("cannot answer");
        return true;
    }
    case 'Z': {
        uint64_t id = word(), at = word(), bytes = word();
        memset(part("zero", id, at, bytes), 0, bytes);
        return true;
    }
    case 'L': return launch(), true;
    case 'P': return product(), true;
    default: fail("an order that begins with byte " + std::to_string((int)letter));
    }
}

} // namespace

int main(int count, char** words) {
    if (count > 1) emulated::chance ^= strtoull(words[1], nullptr, 10) * 0x9E3779B97F4A7C15ull;
    if (emulated::chance == 0) emulated::chance = 1;
    static char in[1 << 16];
    setvbuf(stdin, in, _IOFBF, sizeof in);
    while (order()) {
    }
    return 0;
}
