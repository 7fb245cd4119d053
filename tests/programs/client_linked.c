/* SPDX-License-Identifier: Apache-2.0 */
/* A C program linked to libcuda.so.1: its driver calls go through the PLT. Usage: client_linked COUNT MIB SEED */
#include "exercise.h"

int main(int argc, char **argv)
{
    if (argc != 4)
        return 64;
    return exercise_say(exercise_device((unsigned)atoi(argv[1]), strtoull(argv[2], NULL, 10) << 20, strtoull(argv[3], NULL, 10)));
}
