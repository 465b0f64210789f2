// herd._core: the native part of the cpu backend. Wrong arguments are ValueError, missing memory is MemoryError.
#include "bind/bind.h"

NB_MODULE(_core, m) {
    m.doc() = "Native kernels, the thread pool and the program executor of the cpu backend, and what training asks of a processor.";
    herd::bind_machine(m);
    herd::bind_matrix(m);
    herd::bind_pictures(m);
    herd::bind_program(m);
    herd::bind_kernels(m);
    herd::bind_learning(m);
    herd::bind_learning_rows(m);
    herd::bind_sample(m);
    herd::bind_tensor_memory(m);
    herd::bind_vocabulary(m);
}
