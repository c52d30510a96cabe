/* Memories that open devices share. Each takes 80 % of what is there, divided by how many there are. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/internal.h"

struct od_memory {
    od_memory *next;
    char name[64];
    unsigned users;
};

static od_memory *memories; /* never freed: as many as there are devices */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Whatever their platform. */
bool od_memory_is_host(const od_device_info *info) {
    return info->unified_memory || info->type == OD_DEVICE_CPU;
}

static void name_of(char *name, size_t size, const od_device_info *info) {
    if (od_memory_is_host(info))
        (void)snprintf(name, size, "host");
    else
        (void)snprintf(name, size, "%s", info->physical[0] ? info->physical : info->id);
}

od_memory *od_memory_enter(const od_device_info *info) {
    char name[sizeof memories->name];
    name_of(name, sizeof name, info);
    pthread_mutex_lock(&lock);
    od_memory *m = memories;
    while (m && strcmp(m->name, name) != 0)
        m = m->next;
    if (!m && (m = calloc(1, sizeof *m))) {
        memcpy(m->name, name, sizeof name);
        m->next = memories;
        memories = m;
    }
    if (m)
        m->users++;
    pthread_mutex_unlock(&lock);
    return m;
}

void od_memory_leave(od_memory *memory) {
    if (!memory)
        return;
    pthread_mutex_lock(&lock);
    memory->users--;
    pthread_mutex_unlock(&lock);
}

unsigned od_memory_users(const od_memory *memory) {
    if (!memory)
        return 1;
    pthread_mutex_lock(&lock);
    const unsigned users = memory->users;
    pthread_mutex_unlock(&lock);
    return users;
}
