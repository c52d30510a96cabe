/* Names and how near they are to each other. */
#ifndef BASE_TEXT_H
#define BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Levenshtein distance without case; names are compared by their first 63 characters. */
unsigned od_edit_distance(const char *a, const char *b);

/* The name nearest to `word` in a list that ends with NULL; NULL only for an empty list. */
const char *od_nearest(const char *word, const char *const *names);

/* The same, but NULL when none is near enough to be what was meant. */
const char *od_nearest_name(const char *word, const char *const *names);

bool od_contains_nocase(const char *text, const char *part);

/* Whether a list of names with commas between them holds the name; an empty list holds all. */
bool od_list_holds(const char *list, const char *name);

#endif
