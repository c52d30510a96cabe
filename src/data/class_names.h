#ifndef DATA_CLASS_NAMES_H
#define DATA_CLASS_NAMES_H

extern const char *const od_fashion_classes[], *const od_digit_classes[]; /* 10 each */
extern const char *const od_cifar10_classes[], *const od_stl10_classes[]; /* 10 each */
extern const char *const od_cifar100_classes[] /* 100 */, *const od_cifar100_coarse_classes[] /* 20 */;

#endif
