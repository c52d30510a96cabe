/* The OpenCL handles behind a device, for libraries that want them (CLBlast). void pointers: the caller needs no OpenCL
 * header to pass them on. */
#ifndef DEVICE_NATIVE_H
#define DEVICE_NATIVE_H

#include "offdiag/device.h"

void *od_native_device(od_device *device);       /* cl_device_id */
void *od_native_queue(od_device *device);        /* cl_command_queue */
void *od_native_buffer(const od_buffer *buffer); /* cl_mem */
/* Tell the device that a command was enqueued behind its back, and what it does. */
void od_native_enqueued(od_device *device, od_work work);

#endif
