#include "device/native.h"

#include "device/internal.h"

void *od_native_device(od_device *device) {
    return device->id;
}

void *od_native_queue(od_device *device) {
    return device->queue;
}

void *od_native_buffer(const od_buffer *buffer) {
    return od_buffer_mem(buffer);
}

void od_native_enqueued(od_device *device, od_work work) {
    (void)od_fault(device, OD_FAULT_LAUNCH); /* found by the next call */
    od_work_count(device, work);
    od_device_enqueued(device);
}
