# COCO with masks as in MMDetection: images of at most 1333x800.
_base_ = ['mmdet::_base_/datasets/coco_instance.py']

num_classes = 80
load_image = dict(type='mm_ummae.LoadCompleteImage', imdecode_backend='cv2')  # detects truncated files
train_pipeline = [load_image, *_base_.train_pipeline[1:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
