/* SPDX-License-Identifier: Apache-2.0 */
/* The struct that par_mixed (params.cu) takes by value. */
#ifndef PARAMS_H
#define PARAMS_H

struct pair_of_pointers {
    const unsigned long long *first, *second;
    unsigned long long count;
};

#endif
