/* SPDX-License-Identifier: Apache-2.0 */
/* FRAME: the exported body of every entry. Included by the generated entries.c alone. */
#define FRAME(symbol, taken, passed, index, stream) \
    CUresult symbol taken; \
    __attribute__((visibility("default"))) CUresult symbol taken \
    { \
        if (!sim_watched()) \
            return sim_do_##symbol passed; \
        struct sim_call c; \
        return sim_call_end(&c, sim_call_begin(&c, index, stream) ? sim_do_##symbol passed : c.answer); \
    }
