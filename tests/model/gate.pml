/* SPDX-License-Identifier: Apache-2.0 */
/* Model of the gate (csrc/tiering/gate.h) and of the idle proof that follows it. Run by tests/model/test_gate_model.py with spin.
 *
 * Submitters mark themselves inside, look at the gate, submit an operation to a queue that a GPU works off, leave. A closer shuts
 * the gate, waits for all counters, has the driver prove that the queue is empty, moves memory, opens. Both may give up at any
 * point, as deadlines make them. Stores go through a store buffer of one entry (x86-TSO), drained at any time, or by a barrier.
 *
 * Claim: no operation is submitted or executed while memory is moved; every submitter gets through; the closer never blocks.
 * Built in mistakes, one at a time, each of which spin must find:
 *   -DCHECK_FIRST    the submitter looks at the gate before it marks itself
 *   -DNO_BARRIER     its mark is a plain store, still in the store buffer when it looks at the gate
 *   -DPROOF_FIRST    the closer has the driver prove idleness before the counters are zero
 *   -DNO_PROOF       the closer takes counters at zero for idleness
 *   -DBLOCK          the closer waits for the device without a deadline: the device waits for a parked thread
 */
#ifndef THREADS
#define THREADS 2
#endif
#ifndef ROUNDS
#define ROUNDS 2
#endif

bool gate = false;            /* closed */
byte inside[THREADS];         /* what other processors see */
bool buffered[THREADS];       /* a store of 1 to inside[] waits in the thread's store buffer */
byte queued = 0;              /* operations of the device */
bool moving = false;
bool flag = false;            /* what a spinning kernel waits for; a submitter sets it when it has got through */
bool spinning = false;        /* such a kernel is on the device */
byte finished = 0;

#define DRAIN(i) if :: buffered[i] -> inside[i] = 1; buffered[i] = false :: else fi

proctype store_buffer(byte i)
{
end:
    do
    :: atomic { buffered[i] -> inside[i] = 1; buffered[i] = false }
    od
}

inline mark(i)
{
#ifdef NO_BARRIER
    buffered[i] = true
#else
    inside[i] = 1 /* xchg: the buffer is empty afterwards */
#endif
}

inline unmark(i)
{
    atomic { DRAIN(i); inside[i] = 0 } /* stores are seen in order */
}

proctype submitter(byte i)
{
    byte round = 0;
    do
    :: round < ROUNDS ->
        do
        ::
#ifdef CHECK_FIRST
            !gate;
            mark(i);
            break
#else
            mark(i);
            if
            :: !gate -> break
            :: else -> unmark(i); !gate /* parked: the futex wakes it when the gate opens */
            fi
#endif
        od;
        atomic {
            assert(!moving);
            queued++;
            if
            :: i == 0 && round == 0 -> spinning = true /* a kernel that waits for thread 1 */
            :: else -> skip
            fi
        };
        if
        :: i == 1 -> flag = true
        :: else -> skip
        fi;
        unmark(i);
        round++
    :: else -> break
    od;
    finished++
}

active proctype device()
{
end:
    do
    :: atomic { queued > 0 && (!spinning || flag) -> assert(!moving); queued--; spinning = false }
    od
}

active proctype closer()
{
    byte i, tries = 0;
    bool shut;
    do
    :: tries < 2 ->
        tries++;
        gate = true; /* seq_cst: seen by all before the counters are read */
        shut = true;
#ifdef PROOF_FIRST
        if
        :: queued == 0 -> skip
        :: true -> shut = false
        fi;
#endif
        i = 0;
        do
        :: shut && i < THREADS ->
            if
            :: inside[i] == 0 -> i++
            :: true -> shut = false /* the deadline */
            fi
        :: else -> break
        od;
#if !defined(PROOF_FIRST) && !defined(NO_PROOF)
        if
        :: shut ->
            if
            :: queued == 0 -> skip
#ifndef BLOCK
            :: true -> shut = false
#endif
            fi
        :: else -> skip
        fi;
#endif
        if
        :: shut -> moving = true; moving = false
        :: else -> skip
        fi;
        gate = false
    :: else -> break
    od
}

init
{
    byte i = 0;
    atomic {
        do
        :: i < THREADS -> run submitter(i); run store_buffer(i); i++
        :: else -> break
        od
    }
    finished == THREADS && queued == 0 && !gate
}
