/* SPDX-License-Identifier: Apache-2.0 */
/* What freezes a process, as freeze.c says. */
#ifndef SPILL_FREEZE_H
#define SPILL_FREEZE_H

/* For trigger.S: the entry of row `which` of hooks.def's TRIGGER rows, or cuGetExportTable, is called. Answers the driver's. */
void *spill_trigger(unsigned which, const void *first, const void *second);
void *spill_export_table(unsigned which, const void *table, const void *id);

/* Look at what the process has loaded and opened, and who watches it; spill_settings.look. Any thread, any lock of ours. */
void spill_freeze_look(void);

#endif
